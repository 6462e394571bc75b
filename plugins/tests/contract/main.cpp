/* Contract harness of the TensorRT plugin: plays TensorRT's part towards one library, without a GPU.
 *
 *     contract_test LIBRARY [TENSORRT]
 *
 * LIBRARY is the host build (its enqueue takes host pointers), built with the headers of any TensorRT from 10.3 on.
 * TENSORRT is a real libnvinfer_lean.so, whose registry then loads LIBRARY and finds its creator.
 * Prints one line a check; exit code 1 when one failed.
 */
#include <exception>
#include <iostream>

#include "checks.h"

void contract::check_refusal(const PluginLibrary& library, Report& report, const std::string& name, bool refused,
                             const std::string& about) {
    const std::string message = library.last_error();
    if (!refused) return report.check(name, false, "taken");
    const bool one_line = message.find('\n') == std::string::npos;
    report.check(name, one_line && message.find(about) != std::string::npos, "message \"" + message + "\"");
}

int main(int count, char** arguments) {
    if (count != 2 && count != 3) {
        std::cerr << "usage: contract_test LIBRARY [TENSORRT]\n";
        return 2;
    }
    contract::Report report;
    try {
        const contract::PluginLibrary library(arguments[1], count == 3 ? arguments[2] : "");
        report.check(count == 3 ? "the registry finds the creator" : "the library loads without TensorRT", true);
        contract::check_creator(library, report);
        contract::check_building(library, report);
        contract::check_shapes(library, report);
        contract::check_lifecycle(library, report);
        contract::check_enqueue(library, report);
    } catch (const std::exception& error) {
        report.check("the library loads and makes plugins", false, error.what());
    }
    std::cout << report.checks() << " checks, " << report.failures() << " failed" << std::endl;
    return report.failures() == 0 ? 0 : 1;
}
