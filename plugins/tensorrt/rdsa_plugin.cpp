#include "rdsa_plugin.h"

#include <cstdio>
#include <exception>
#include <new>

#include "sdst/rdsa.h"

namespace sdst {
namespace {

/* The status of a check; no exception may cross into TensorRT. */
template <class Check>
int32_t guarded(Check check) noexcept {
    try {
        return check();
    } catch (const std::exception&) {  // out of memory for a message
        return SDST_BAD_ARGUMENT;
    }
}

}  // namespace

RdsaPlugin::RdsaPlugin(const Attributes& attributes) noexcept
    : attributes_(attributes),
      fields_{{NUM_HEADS_FIELD, &attributes_.num_heads, nvinfer1::PluginFieldType::kINT32, 1},
              {NUM_POINTS_FIELD, &attributes_.num_points, nvinfer1::PluginFieldType::kINT32, 1}},
      collection_{2, fields_} {
    std::snprintf(attributes_text_, sizeof attributes_text_, "%s=%d %s=%d", NUM_HEADS_FIELD, attributes_.num_heads,
                  NUM_POINTS_FIELD, attributes_.num_points);
}

nvinfer1::IPluginCapability* RdsaPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* RdsaPlugin::clone() noexcept { return new (std::nothrow) RdsaPlugin(attributes_); }

int32_t RdsaPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                                    const nvinfer1::DynamicPluginTensorDesc* out, int32_t out_count) noexcept {
    return guarded([=] {
        if (const int status = check_counts(in_count, out_count)) return status;
        return check_profile(attributes_, in, *out);
    });
}

int32_t RdsaPlugin::getOutputDataTypes(nvinfer1::DataType* out_types, int32_t out_count,
                                       const nvinfer1::DataType* in_types, int32_t in_count) const noexcept {
    return guarded([=] {
        if (const int status = check_counts(in_count, out_count)) return status;
        if (const int status = check_types(in_types)) return status;
        out_types[0] = in_types[VALUE];
        return int{SDST_OK};
    });
}

int32_t RdsaPlugin::getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count, const nvinfer1::DimsExprs*,
                                    int32_t, nvinfer1::DimsExprs* out, int32_t out_count,
                                    nvinfer1::IExprBuilder&) noexcept {
    return guarded([=] {
        if (const int status = check_counts(in_count, out_count)) return status;
        if (const int status = check_ranks(in)) return status;
        out->nbDims = 3;
        out->d[0] = in[VALUE].d[0];
        out->d[1] = in[REFERENCE].d[1];
        out->d[2] = in[VALUE].d[2];
        return int{SDST_OK};
    });
}

bool RdsaPlugin::supportsFormatCombination(int32_t tensor, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                           int32_t in_count, int32_t out_count) noexcept {
    if (in_count != INPUTS || out_count != OUTPUTS) return false;
    const nvinfer1::PluginTensorDesc& desc = tensors[tensor].desc;  // those beyond are not set yet
    return desc.format == nvinfer1::TensorFormat::kLINEAR && takes_type(tensor, desc.type, tensors[VALUE].desc.type);
}

int32_t RdsaPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t in_count,
                                  const nvinfer1::PluginTensorDesc* out, int32_t out_count) noexcept {
    return guarded([=] {
        if (const int status = check_counts(in_count, out_count)) return status;
        return check_shapes(attributes_, in, *out);
    });
}

int32_t RdsaPlugin::enqueue(const nvinfer1::PluginTensorDesc* in_desc, const nvinfer1::PluginTensorDesc*,
                            const void* const* in, void* const* out, void*, cudaStream_t stream) noexcept {
    const nvinfer1::Dims& value = in_desc[VALUE].dims;
    const nvinfer1::Dims& endpoints = in_desc[ENDPOINTS].dims;
    sdst_rdsa_problem problem = {};
    problem.value = in[VALUE];
    problem.endpoints = static_cast<const float*>(in[ENDPOINTS]);
    problem.reference = static_cast<const float*>(in[REFERENCE]);
    problem.length = static_cast<const int32_t*>(in[LENGTH]);
    problem.out = out[0];
    problem.batch = value.d[0];
    problem.clips = value.d[1];
    problem.moments = in_desc[REFERENCE].dims.d[1];
    problem.heads = attributes_.num_heads;
    problem.points = attributes_.num_points;
    problem.depth = static_cast<int32_t>(value.d[2] / attributes_.num_heads);
    problem.type = in_desc[VALUE].type == nvinfer1::DataType::kHALF ? SDST_HALF : SDST_FLOAT;
    problem.value_batch_stride = value.d[1] * value.d[2];
    problem.value_clip_stride = value.d[2];
    problem.endpoints_batch_stride = endpoints.d[1] * endpoints.d[2];
    problem.endpoints_clip_stride = endpoints.d[2];
    return sdst_rdsa(&problem, stream);
}

nvinfer1::IPluginV3* RdsaPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

}  // namespace sdst
