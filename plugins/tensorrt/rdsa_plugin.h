/* The TensorRT plugin: interfaces IPluginV3, V3OneCore, V3OneBuild and V3OneRuntime around sdst_rdsa.
 *
 * One binary serves TensorRT 10.3 to 11.x: their lists of virtual functions are the same, and nothing of TensorRT is
 * called (ILogger and the registry moved in 11). A plugin never changes after it is made, so its threads and contexts
 * share nothing, and every pointer it returns lives as long as the plugin. Failures leave a message in sdst_last_error
 * of the thread that TensorRT called on.
 */
#ifndef SDST_RDSA_PLUGIN_H
#define SDST_RDSA_PLUGIN_H

#include <NvInferRuntime.h>

#include "tensor_checks.h"

namespace sdst {

constexpr const char* PLUGIN_NAME = "RDSA";
constexpr const char* PLUGIN_VERSION = "1";
constexpr const char* PLUGIN_NAMESPACE = "sdst";
constexpr const char* NUM_HEADS_FIELD = "num_heads";
constexpr const char* NUM_POINTS_FIELD = "num_points";

class RdsaPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit RdsaPlugin(const Attributes& attributes) noexcept;
    RdsaPlugin(const RdsaPlugin&) = delete;
    RdsaPlugin& operator=(const RdsaPlugin&) = delete;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    const char* getPluginName() const noexcept override { return PLUGIN_NAME; }
    const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

    // IPluginV3OneBuild; no workspace, no tactics, no output aliases an input: the defaults
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                            const nvinfer1::DynamicPluginTensorDesc* out, int32_t out_count) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* out_types, int32_t out_count, const nvinfer1::DataType* in_types,
                               int32_t in_count) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count, const nvinfer1::DimsExprs* shape_in,
                            int32_t shape_in_count, nvinfer1::DimsExprs* out, int32_t out_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t tensor, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t in_count,
                                   int32_t out_count) noexcept override;
    int32_t getNbOutputs() const noexcept override { return OUTPUTS; }
    const char* getTimingCacheID() noexcept override { return attributes_text_; }
    const char* getMetadataString() noexcept override { return attributes_text_; }

    // IPluginV3OneRuntime
    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t in_count, const nvinfer1::PluginTensorDesc* out,
                          int32_t out_count) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* in_desc, const nvinfer1::PluginTensorDesc* out_desc,
                    const void* const* in, void* const* out, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

  private:
    Attributes attributes_;
    char attributes_text_[48];  // "num_heads=H num_points=P"
    nvinfer1::PluginField fields_[2];
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace sdst

#endif
