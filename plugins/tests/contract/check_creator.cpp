/* The library's entry points, the versions of its interfaces, and the fields that a plugin is made from. */
#include <cstring>

#include "checks.h"

namespace contract {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

/* TensorRT 10 and 11 differ here, so the plugin must never ask for a logger. */
struct ForbiddenLoggers final : nvinfer1::ILoggerFinder {
    nvinfer1::ILogger* findLogger() override {
        asked = true;
        return nullptr;
    }
    bool asked = false;
};

void check_interface(Report& report, const nvinfer1::IVersionedInterface& object, const char* kind) {
    const nvinfer1::InterfaceInfo info = object.getInterfaceInfo();
    const bool same = std::strcmp(info.kind, kind) == 0 && info.major == 1 && info.minor == 0;
    const bool cpp = object.getAPILanguage() == nvinfer1::APILanguage::kCPP;
    report.check(std::string("interface ") + kind + " is version 1.0", same && cpp,
                 std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor));
}

template <class Named>
void check_names(Report& report, const std::string& who, const Named& named) {
    const std::string seen =
        std::string(named.getPluginNamespace()) + "::" + named.getPluginName() + " version " + named.getPluginVersion();
    report.check(who + " is sdst::RDSA version 1", seen == "sdst::RDSA version 1", seen);
}

void check_field_names(Report& report, nvinfer1::IPluginCreatorV3One& creator) {
    const nvinfer1::PluginFieldCollection* fields = creator.getFieldNames();
    std::string seen;
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        const bool number = fields->fields[i].type == PluginFieldType::kINT32;
        seen += std::string(fields->fields[i].name) + (number ? ":INT32 " : ":other ");
    }
    report.check("creator names the fields", seen == "num_heads:INT32 num_points:INT32 ", seen);
}

void check_bad_fields(const PluginLibrary& library, Report& report) {
    static const int32_t zero = 0, minus = -1, two = 2, many = 17, very_many = 1 << 30;
    static const int64_t wide = 2;
    const auto int32_field = [](const char* name, const int32_t* data) {
        return PluginField(name, data, PluginFieldType::kINT32, 1);
    };
    const PluginField heads = int32_field("num_heads", &two), points = int32_field("num_points", &two);
    const struct {
        const char* what;
        std::vector<PluginField> fields;
        const char* about;
    } cases[] = {
        {"no num_heads", {points}, "num_heads"},
        {"no num_points", {heads}, "num_points"},
        {"no field at all", {}, "num_heads"},
        {"num_heads twice", {heads, points, heads}, "num_heads"},
        {"num_points twice", {heads, points, points}, "num_points"},
        {"num_heads of FLOAT32", {{"num_heads", &two, PluginFieldType::kFLOAT32, 1}, points}, "num_heads"},
        {"num_points of INT64", {heads, {"num_points", &wide, PluginFieldType::kINT64, 1}}, "num_points"},
        {"num_heads of no number", {{"num_heads", &two, PluginFieldType::kINT32, 0}, points}, "num_heads"},
        {"num_heads without data", {int32_field("num_heads", nullptr), points}, "num_heads"},
        {"num_heads of 0", {int32_field("num_heads", &zero), points}, "num_heads"},
        {"num_points of -1", {heads, int32_field("num_points", &minus)}, "num_points"},
        {"num_points of 17", {heads, int32_field("num_points", &many)}, "num_points"},
        {"num_heads of 2^30", {int32_field("num_heads", &very_many), points}, "num_heads"},
    };
    for (const auto& bad : cases) {
        for (const TensorRTPhase phase : {TensorRTPhase::kBUILD, TensorRTPhase::kRUNTIME}) {
            library.forget_last_error();
            const nvinfer1::PluginFieldCollection collection = {static_cast<int32_t>(bad.fields.size()),
                                                                bad.fields.data()};
            const Plugin plugin(library.creator().createPlugin("step", &collection, phase));
            const char* when = phase == TensorRTPhase::kBUILD ? " (build)" : " (runtime)";
            check_refusal(library, report, std::string("createPlugin refuses ") + bad.what + when, plugin == nullptr,
                          bad.about);
        }
    }
}

void check_other_fields(const PluginLibrary& library, Report& report) {
    static const int32_t two = 2;
    const PluginField fields[] = {{nullptr, nullptr, PluginFieldType::kUNKNOWN, 0},
                                  {"plugin_version", "1", PluginFieldType::kCHAR, 1},
                                  {"num_points", &two, PluginFieldType::kINT32, 1},
                                  {"num_heads", &two, PluginFieldType::kINT32, 1}};
    const nvinfer1::PluginFieldCollection collection = {4, fields};
    const Plugin plugin(library.creator().createPlugin("step", &collection, TensorRTPhase::kBUILD));
    report.check("createPlugin takes fields in any order beside others", plugin != nullptr, library.last_error());
}

}  // namespace

void check_creator(const PluginLibrary& library, Report& report) {
    int32_t count = 0, again = 0;
    const auto* creators = library.get_creators(count);
    report.check("getCreators gives one creator", count == 1 && creators != nullptr && creators[0] != nullptr,
                 std::to_string(count));
    report.check("getCreators gives the same array each time",
                 library.get_creators(again) == creators && again == count);
    ForbiddenLoggers loggers;
    library.set_logger_finder(&loggers);
    library.set_logger_finder(nullptr);
    const std::string info = library.build_info();
    report.check("sdst_build_info tells the headers' version", info.find("\"tensorrt\": \"1") != std::string::npos,
                 info);

    nvinfer1::IPluginCreatorV3One& creator = library.creator();
    check_interface(report, creator, "PLUGIN CREATOR_V3ONE");
    check_names(report, "creator", creator);
    check_field_names(report, creator);
    check_bad_fields(library, report);
    check_other_fields(library, report);

    const Plugin plugin = library.create(2, 4);
    check_interface(report, *plugin, "PLUGIN");
    check_interface(report, core(*plugin), "PLUGIN_V3ONE_CORE");
    check_interface(report, build(*plugin), "PLUGIN_V3ONE_BUILD");
    check_interface(report, runtime(*plugin), "PLUGIN_V3ONE_RUNTIME");
    check_names(report, "plugin", core(*plugin));
    const auto unknown = static_cast<nvinfer1::PluginCapabilityType>(3);
    report.check("an unknown capability is null", plugin->getCapabilityInterface(unknown) == nullptr);
    report.check("no logger is asked for", !loggers.asked);
}

}  // namespace contract
