/* What the builder asks: output types and symbolic shapes, formats, workspace, timing cache. */
#include <cstring>
#include <set>

#include "checks.h"
#include "symbolic.h"
#include "tensors.h"

namespace contract {
namespace {

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

constexpr int32_t TYPES = 12;    // of 11.1; 10.3 has the first ten
constexpr int32_t FORMATS = 13;  // of 10.3 to 11.1

void check_output_types(const PluginLibrary& library, Report& report, nvinfer1::IPluginV3OneBuild& building) {
    for (const DataType type : {DataType::kHALF, DataType::kFLOAT}) {
        const AllTypes types = types_of(type);
        DataType out = DataType::kINT8;
        const int32_t status = building.getOutputDataTypes(&out, 1, types.data(), INPUTS);
        const std::string name = type == DataType::kHALF ? "half" : "float";
        report.check("output type follows value: " + name, status == 0 && out == type,
                     std::to_string(static_cast<int32_t>(out)));
    }
    const DataType wrong[INPUTS] = {DataType::kBF16, DataType::kHALF, DataType::kHALF, DataType::kINT64};
    for (int32_t tensor = 0; tensor < INPUTS; ++tensor) {
        AllTypes types = types_of(DataType::kHALF);
        types[tensor] = wrong[tensor];
        DataType out = DataType::kHALF;
        library.forget_last_error();
        const int32_t status = building.getOutputDataTypes(&out, 1, types.data(), INPUTS);
        check_refusal(library, report, std::string("getOutputDataTypes refuses a wrong type of ") + NAMES[tensor],
                      status != 0, NAMES[tensor]);
    }
}

nvinfer1::DimsExprs expressions(ExpressionBuilder& builder, const char* letters) {
    nvinfer1::DimsExprs dims = {};
    for (; letters[dims.nbDims] != '\0'; ++dims.nbDims) dims.d[dims.nbDims] = builder.size(letters[dims.nbDims]);
    return dims;
}

void check_output_shape(const PluginLibrary& library, Report& report, nvinfer1::IPluginV3OneBuild& building) {
    ExpressionBuilder builder;
    nvinfer1::DimsExprs in[INPUTS] = {expressions(builder, "BTF"), expressions(builder, "BTE"),
                                      expressions(builder, "BM2"), expressions(builder, "B")};
    nvinfer1::DimsExprs out = {};
    const int32_t status = building.getOutputShapes(in, INPUTS, nullptr, 0, &out, 1, builder);
    for (const Numbers& numbers : {Numbers{{'B', 3}, {'T', 75}, {'M', 30}, {'F', 256}, {'E', 192}, {'2', 2}},
                                   Numbers{{'B', 5}, {'T', 7}, {'M', 11}, {'F', 32}, {'E', 48}, {'2', 2}}}) {
        std::string seen;
        for (int32_t i = 0; i < out.nbDims; ++i) {
            seen += std::to_string((*static_cast<const Expression*>(out.d[i]))(numbers)) + " ";
        }
        std::string expected;
        for (const char size : {'B', 'M', 'F'}) expected += std::to_string(numbers.at(size)) + " ";
        report.check("output shape is B M F: " + expected, status == 0 && seen == expected, seen);
    }
    in[2] = expressions(builder, "BM");
    library.forget_last_error();
    check_refusal(library, report, "getOutputShapes refuses a reference of 2 dimensions",
                  building.getOutputShapes(in, INPUTS, nullptr, 0, &out, 1, builder) != 0, "reference");
}

/* Accepted combinations, found as TensorRT finds them: position by position, with garbage in what is not decided yet,
 * and no more than it looks at. */
std::set<std::string> accepted_formats(nvinfer1::IPluginV3OneBuild& building, unsigned char garbage) {
    std::set<std::string> accepted;
    std::vector<AllDynamicDescs> prefixes(1);
    for (int32_t pos = 0; pos < TENSORS; ++pos) {
        std::vector<AllDynamicDescs> longer;
        accepted.clear();
        for (const AllDynamicDescs& prefix : prefixes) {
            for (int32_t candidate = 0; candidate < TYPES * FORMATS; ++candidate) {
                AllDynamicDescs descs = prefix;
                descs[pos].desc.type = static_cast<DataType>(candidate / FORMATS);
                descs[pos].desc.format = static_cast<TensorFormat>(candidate % FORMATS);
                std::memset(static_cast<void*>(descs.data() + pos + 1), garbage, sizeof descs[0] * (TENSORS - 1 - pos));
                if (!building.supportsFormatCombination(pos, descs.data(), INPUTS, 1)) continue;
                longer.push_back(descs);
                std::string text;
                for (int32_t i = 0; i <= pos; ++i) {
                    text += std::to_string(static_cast<int32_t>(descs[i].desc.type)) + ":" +
                            std::to_string(static_cast<int32_t>(descs[i].desc.format)) + " ";
                }
                accepted.insert(text);
            }
        }
        if (longer.size() > 100) return accepted;
        prefixes = longer;
    }
    return accepted;
}

void check_formats(Report& report, nvinfer1::IPluginV3OneBuild& building) {
    const std::set<std::string> expected = {"1:0 0:0 0:0 3:0 1:0 ",
                                            "0:0 0:0 0:0 3:0 0:0 "};  // all half or float, linear
    for (const unsigned char garbage : {0x00, 0x01, 0x7f, 0xff}) {
        std::string seen;
        const std::set<std::string> accepted = accepted_formats(building, garbage);
        for (const std::string& one : accepted) seen += "(" + one + ")";
        report.check("formats: two combinations, with garbage " + std::to_string(garbage) + " beyond the position",
                     accepted == expected, seen);
    }
    const AllDims dims = dims_of({1, 1, 1, 2, 4, 16});
    const AllDynamicDescs descs = describe(dims, dims, dims, types_of(DataType::kHALF));
    report.check("formats: none with 3 inputs", !building.supportsFormatCombination(0, descs.data(), 3, 1));
    report.check("formats: the limit allows both", building.getFormatCombinationLimit() >= 2);
}

void check_timing_cache(const PluginLibrary& library, Report& report) {
    const int32_t attributes[][2] = {{1, 11}, {11, 1}, {1, 1}, {11, 11}, {1, 12}, {111, 2}, {65536, 16}};
    std::set<std::string> ids;
    for (const auto& [heads, points] : attributes) {
        const Plugin plugin = library.create(heads, points), same = library.create(heads, points);
        const char* id = build(*plugin).getTimingCacheID();
        const std::string name = std::to_string(heads) + " heads, " + std::to_string(points) + " points";
        if (id == nullptr) {
            report.check("timing cache ID is there: " + name, false, "null");
            continue;
        }
        const std::string before = id, again = build(*plugin).getTimingCacheID(),
                          of_same = build(*same).getTimingCacheID();
        report.check("timing cache ID is stable: " + name, before == again && before == of_same && before == id,
                     of_same);
        ids.insert(before);
    }
    report.check("timing cache ID differs where fields differ", ids.size() == std::size(attributes),
                 std::to_string(ids.size()));
}

}  // namespace

void check_building(const PluginLibrary& library, Report& report) {
    const Plugin plugin = library.create(2, 4);
    nvinfer1::IPluginV3OneBuild& building = build(*plugin);
    report.check("one output", building.getNbOutputs() == 1);
    report.check("no tactics", building.getNbTactics() == 0);
    const AllDims dims = dims_of({8, 300, 100, 2, 4, 16});
    const AllDynamicDescs descs = describe(dims, dims, dims, types_of(DataType::kHALF));
    report.check("no workspace", building.getWorkspaceSize(descs.data(), INPUTS, &descs[INPUTS], 1) == 0);
    const char* metadata = building.getMetadataString();
    report.check("metadata holds the attributes",
                 std::string(metadata == nullptr ? "" : metadata) == "num_heads=2 num_points=4",
                 metadata == nullptr ? "null" : metadata);
    check_output_types(library, report, building);
    check_output_shape(library, report, building);
    check_formats(report, building);
    check_timing_cache(library, report);
}

}  // namespace contract
