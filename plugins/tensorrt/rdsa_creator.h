/* Makes plugins from their fields, num_heads and num_points: one INT32 each, in the build and the runtime phase. */
#ifndef SDST_RDSA_CREATOR_H
#define SDST_RDSA_CREATOR_H

#include <NvInferRuntime.h>

#include "rdsa_plugin.h"

namespace sdst {

class RdsaCreator final : public nvinfer1::IPluginCreatorV3One {
  public:
    /* Null, with a message in sdst_last_error, when a field is missing, there twice, of a wrong type or out of range.
     * Fields of other names are not looked at. */
    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return PLUGIN_NAME; }
    const char* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    const char* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

  private:
    const nvinfer1::PluginField fields_[2] = {{NUM_HEADS_FIELD, nullptr, nvinfer1::PluginFieldType::kINT32, 1},
                                              {NUM_POINTS_FIELD, nullptr, nvinfer1::PluginFieldType::kINT32, 1}};
    const nvinfer1::PluginFieldCollection collection_ = {2, fields_};
};

}  // namespace sdst

#endif
