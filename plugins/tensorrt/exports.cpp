/* The two functions that TensorRT looks up in a plugin library (IPluginRegistry::loadLibrary). */
#include <NvInferRuntime.h>

#include "rdsa_creator.h"

#define SDST_EXPORT extern "C" __attribute__((visibility("default")))

SDST_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    static sdst::RdsaCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

/* Takes no logger: what the plugin has to say is in sdst_last_error, and ILogger differs between TensorRT 10 and 11. */
SDST_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) noexcept {}
