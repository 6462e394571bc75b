/* configurePlugin and onShapeChange: what they take, and what they refuse with the tensor's name. */
#include "checks.h"
#include "tensors.h"

namespace contract {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr Sizes SIZES = {2, 12, 5, 2, 4, 16};  // F = 32, E = 48
enum { VALUE, ENDPOINTS, REFERENCE, LENGTH, OUT };

/* Dimensions that no call of the op may have. `alone`: wrong in itself, not only beside the other tensors. */
struct BadDims {
    const char* what;
    int32_t tensor;
    bool alone;
    void (*spoil)(AllDims& dims);
};
const BadDims BAD_DIMS[] = {
    {"value of 2 dimensions", VALUE, true, [](AllDims& d) { d[VALUE].nbDims = 2; }},
    {"value F of no whole depth", VALUE, true, [](AllDims& d) { d[VALUE].d[2] = d[OUT].d[2] = 33; }},
    {"value F of depth 24", VALUE, true, [](AllDims& d) { d[VALUE].d[2] = d[OUT].d[2] = 48; }},
    {"value F of depth 8", VALUE, true, [](AllDims& d) { d[VALUE].d[2] = d[OUT].d[2] = 16; }},
    {"value of no clips", VALUE, true, [](AllDims& d) { d[VALUE].d[1] = d[ENDPOINTS].d[1] = 0; }},
    {"value of 2^24 + 1 clips", VALUE, true, [](AllDims& d) { d[VALUE].d[1] = d[ENDPOINTS].d[1] = (1 << 24) + 1; }},
    {"endpoints of 4 dimensions", ENDPOINTS, true, [](AllDims& d) { d[ENDPOINTS] = {4, {2, 12, 3, 16}}; }},
    {"endpoints E too small", ENDPOINTS, true, [](AllDims& d) { d[ENDPOINTS].d[2] = 47; }},
    {"endpoints E too large", ENDPOINTS, true, [](AllDims& d) { d[ENDPOINTS].d[2] = 49; }},
    {"endpoints E of one end", ENDPOINTS, true, [](AllDims& d) { d[ENDPOINTS].d[2] = 16; }},
    {"endpoints B of another batch", ENDPOINTS, false, [](AllDims& d) { d[ENDPOINTS].d[0] = 3; }},
    {"endpoints T of another length", ENDPOINTS, false, [](AllDims& d) { d[ENDPOINTS].d[1] = 11; }},
    {"reference of 2 dimensions", REFERENCE, true, [](AllDims& d) { d[REFERENCE].nbDims = 2; }},
    {"reference with 3 columns", REFERENCE, true, [](AllDims& d) { d[REFERENCE].d[2] = 3; }},
    {"reference B of another batch", REFERENCE, false, [](AllDims& d) { d[REFERENCE].d[0] = 1; }},
    {"reference of -2 moments", REFERENCE, true, [](AllDims& d) { d[REFERENCE].d[1] = -2; }},
    {"reference of 2^31 moments", REFERENCE, true,
     [](AllDims& d) { d[REFERENCE].d[1] = d[OUT].d[1] = int64_t{1} << 31; }},
    {"length of 2 dimensions", LENGTH, true, [](AllDims& d) { d[LENGTH] = {2, {2, 1}}; }},
    {"length of no dimension", LENGTH, true, [](AllDims& d) { d[LENGTH].nbDims = 0; }},
    {"length B of another batch", LENGTH, false, [](AllDims& d) { d[LENGTH].d[0] = 3; }},
    {"out of 4 dimensions", OUT, true, [](AllDims& d) { d[OUT] = {4, {2, 5, 2, 16}}; }},
    {"out B of another batch", OUT, false, [](AllDims& d) { d[OUT].d[0] = 1; }},
    {"out with T for M", OUT, false, [](AllDims& d) { d[OUT].d[1] = 12; }},
    {"out F of another width", OUT, false, [](AllDims& d) { d[OUT].d[2] = 16; }},
};

const struct {
    const char* what;
    int32_t tensor;
    DataType type;
} BAD_TYPES[] = {
    {"value of int8", VALUE, DataType::kINT8},
    {"value of bfloat16", VALUE, DataType::kBF16},
    {"endpoints of half", ENDPOINTS, DataType::kHALF},
    {"reference of half", REFERENCE, DataType::kHALF},
    {"length of int64", LENGTH, DataType::kINT64},
    {"length of float", LENGTH, DataType::kFLOAT},
    {"out of half for a float value", OUT, DataType::kHALF},
};

const struct {
    const char* what;
    Sizes sizes;
} GOOD_SIZES[] = {
    {"one of everything", {1, 1, 1, 1, 1, 16}},
    {"depth 32", {3, 75, 30, 8, 4, 32}},
    {"depth 64, 16 points", {2, 2048, 7, 3, 16, 64}},
    {"no moments", {2, 12, 0, 2, 4, 16}},
    {"no videos", {0, 12, 5, 2, 4, 16}},
    {"2^24 clips", {1, 1 << 24, 5, 2, 4, 16}},
};

int32_t configure(nvinfer1::IPluginV3& plugin, const AllDynamicDescs& descs) {
    return build(plugin).configurePlugin(descs.data(), INPUTS, &descs[OUT], 1);
}

int32_t change_shape(nvinfer1::IPluginV3& plugin, const AllDescs& descs) {
    return runtime(plugin).onShapeChange(descs.data(), INPUTS, &descs[OUT], 1);
}

AllDynamicDescs describe_static(const AllDims& dims, const AllTypes& types) {
    return describe(dims, dims, dims, types);
}

void check_good_sizes(const PluginLibrary& library, Report& report) {
    for (const auto& good : GOOD_SIZES) {
        const Plugin plugin = library.create(good.sizes.H, good.sizes.P);
        const AllDims dims = dims_of(good.sizes);
        for (const DataType type : {DataType::kHALF, DataType::kFLOAT}) {
            const std::string name = std::string(good.what) + (type == DataType::kHALF ? ", half" : ", float");
            report.check("configurePlugin takes " + name,
                         configure(*plugin, describe_static(dims, types_of(type))) == 0, library.last_error());
            report.check("onShapeChange takes " + name, change_shape(*plugin, describe(dims, types_of(type))) == 0,
                         library.last_error());
        }
    }
}

void check_dynamic_profiles(const PluginLibrary& library, Report& report) {
    const Plugin plugin = library.create(2, 4);
    const AllTypes types = types_of(DataType::kHALF);
    const AllDims min = dims_of({1, 1, 1, 2, 4, 16}), opt = dims_of({2, 75, 30, 2, 4, 16}),
                  max = dims_of({32, 2048, 100, 2, 4, 16});
    report.check("configurePlugin takes dynamic B, T and M", configure(*plugin, describe(min, opt, max, types)) == 0,
                 library.last_error());
    AllDims widened = max;
    widened[REFERENCE].d[0] = 64;
    report.check("configurePlugin takes bounds of one tensor wider than another's",
                 configure(*plugin, describe(min, opt, widened, types)) == 0, library.last_error());
    AllDynamicDescs clash = describe(min, opt, max, types);
    clash[VALUE].desc.dims.d[0] = 2;
    clash[LENGTH].desc.dims.d[0] = 3;
    library.forget_last_error();
    check_refusal(library, report, "configurePlugin refuses length B of another batch beside dynamic ones",
                  configure(*plugin, clash) != 0, "length");
    AllDescs unknown = describe(opt, types);
    unknown[REFERENCE].dims.d[1] = -1;
    library.forget_last_error();
    check_refusal(library, report, "onShapeChange refuses an unknown dimension", change_shape(*plugin, unknown) != 0,
                  "reference");
}

void check_bad_dims(const PluginLibrary& library, Report& report) {
    const Plugin plugin = library.create(SIZES.H, SIZES.P);
    const AllTypes types = types_of(DataType::kHALF);
    const AllDims good = dims_of(SIZES);
    for (const BadDims& bad : BAD_DIMS) {
        AllDims spoilt = good;
        bad.spoil(spoilt);
        const auto refuses = [&](const std::string& by, int32_t status) {
            check_refusal(library, report, by + " refuses " + bad.what, status != 0, NAMES[bad.tensor]);
            library.forget_last_error();
        };
        library.forget_last_error();
        refuses("onShapeChange", change_shape(*plugin, describe(spoilt, types)));
        AllDynamicDescs network = describe_static(good, types);
        for (int32_t i = 0; i < TENSORS; ++i) network[i].desc.dims = spoilt[i];
        refuses("configurePlugin", configure(*plugin, network));
        if (bad.tensor == OUT) continue;  // its bounds follow from those of the inputs
        const AllDims dynamic = dims_of({9, 99, 99, SIZES.H, SIZES.P, SIZES.D});
        refuses("configurePlugin by opt", configure(*plugin, describe(good, spoilt, dynamic, types)));
        if (!bad.alone) continue;
        refuses("configurePlugin by min", configure(*plugin, describe(spoilt, good, dynamic, types)));
        refuses("configurePlugin by max", configure(*plugin, describe(good, good, spoilt, types)));
    }
}

/* More than 4 GiB a video; the first is so for float only. */
void check_large_videos(const PluginLibrary& library, Report& report) {
    const struct {
        const char* tensor;
        Sizes sizes;
    } cases[] = {{"value", {1, 1 << 22, 1, 8, 1, 64}}, {"endpoints", {1, 1 << 24, 1, 3, 4, 16}}};
    for (const auto& [tensor, sizes] : cases) {
        const Plugin plugin = library.create(sizes.H, sizes.P);
        const AllDims dims = dims_of(sizes);
        const std::string what = std::string(" refuses more than 4 GiB a video in ") + tensor;
        library.forget_last_error();
        const int32_t changed = change_shape(*plugin, describe(dims, types_of(DataType::kFLOAT)));
        check_refusal(library, report, "onShapeChange" + what, changed != 0, tensor);
        library.forget_last_error();
        const int32_t configured = configure(*plugin, describe_static(dims, types_of(DataType::kFLOAT)));
        check_refusal(library, report, "configurePlugin" + what, configured != 0, tensor);
    }
    const AllDims half_as_large = dims_of(cases[0].sizes);
    const Plugin plugin = library.create(cases[0].sizes.H, cases[0].sizes.P);
    report.check("onShapeChange takes 4 GiB a video",
                 change_shape(*plugin, describe(half_as_large, types_of(DataType::kHALF))) == 0, library.last_error());
}

void check_bad_storage(const PluginLibrary& library, Report& report) {
    const Plugin plugin = library.create(SIZES.H, SIZES.P);
    const AllDims dims = dims_of(SIZES);
    const auto refuse = [&](const std::string& what, const char* tensor, const AllDescs& descs) {
        AllDynamicDescs dynamic = describe_static(dims, types_of(DataType::kFLOAT));
        for (int32_t i = 0; i < TENSORS; ++i) dynamic[i].desc = descs[i];
        library.forget_last_error();
        check_refusal(library, report, "configurePlugin refuses " + what, configure(*plugin, dynamic) != 0, tensor);
        library.forget_last_error();
        check_refusal(library, report, "onShapeChange refuses " + what, change_shape(*plugin, descs) != 0, tensor);
    };
    for (const auto& bad : BAD_TYPES) {
        AllDescs descs = describe(dims, types_of(DataType::kFLOAT));
        descs[bad.tensor].type = bad.type;
        refuse(bad.what, NAMES[bad.tensor], descs);
    }
    for (int32_t tensor = 0; tensor < TENSORS; ++tensor) {
        AllDescs descs = describe(dims, types_of(DataType::kFLOAT));
        descs[tensor].format = nvinfer1::TensorFormat::kCHW4;
        refuse(std::string("CHW4 of ") + NAMES[tensor], NAMES[tensor], descs);
    }
}

void check_bad_counts(const PluginLibrary& library, Report& report) {
    const Plugin plugin = library.create(SIZES.H, SIZES.P);
    const AllDescs descs = describe(dims_of(SIZES), types_of(DataType::kHALF));
    const AllDynamicDescs dynamic = describe_static(dims_of(SIZES), types_of(DataType::kHALF));
    library.forget_last_error();
    check_refusal(library, report, "configurePlugin refuses 3 inputs",
                  build(*plugin).configurePlugin(dynamic.data(), 3, &dynamic[OUT], 1) != 0, "4 inputs");
    library.forget_last_error();
    check_refusal(library, report, "onShapeChange refuses 3 inputs",
                  runtime(*plugin).onShapeChange(descs.data(), 3, &descs[OUT], 1) != 0, "4 inputs");
}

}  // namespace

void check_shapes(const PluginLibrary& library, Report& report) {
    check_good_sizes(library, report);
    check_dynamic_profiles(library, report);
    check_bad_dims(library, report);
    check_large_videos(library, report);
    check_bad_storage(library, report);
    check_bad_counts(library, report);
}

}  // namespace contract
