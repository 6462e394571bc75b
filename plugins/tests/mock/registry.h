/* The mock's plugin registry: loads plugin libraries as TensorRT does and finds their creators. */
#ifndef SDST_MOCK_REGISTRY_H
#define SDST_MOCK_REGISTRY_H

#include <vector>

#include "unmocked.h"

namespace sdst_mock {
class PluginRegistry final : public nvinfer1::UnmockedPluginRegistry {
  public:
    // The one of the process.
    static PluginRegistry& instance();

    void* loadLibrary(const char* path) noexcept override;
    void deregisterLibrary(void* handle) noexcept override;
    nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override;
    nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                                  const char* plugin_namespace) noexcept override;

  private:
    bool add_creators(void* library, const char* path);

    std::vector<nvinfer1::IPluginCreatorInterface*> creators_;
    std::vector<void*> libraries_;  // of the creator at the same index
};
}  // namespace sdst_mock

#endif
