/* The nine symbols that TensorRT's Python bindings want from libnvinfer, libnvinfer_plugin and libnvonnxparser. Runtime
 * and registry are mocked, builder and parser where NvOnnxParser.h is at hand; the others are refused, with an error in
 * the caller's log. */
#include <NvInfer.h>
#include <NvInferPlugin.h>

#include "builder.h"
#include "engine.h"
#include "registry.h"

namespace {
void* refuse(void* logger, const char* what) {
    sdst_mock::log_error(*static_cast<nvinfer1::ILogger*>(logger), std::string("the mock has no ") + what);
    return nullptr;
}
}  // namespace

void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
    nvinfer1::IRuntime* const runtime = new sdst_mock::Runtime(*static_cast<nvinfer1::ILogger*>(logger));
    return runtime;
}

void* createInferBuilder_INTERNAL(void* logger, int32_t) noexcept {
#ifdef SDST_MOCK_BUILDER
    return sdst_mock::make_builder(*static_cast<nvinfer1::ILogger*>(logger));
#else
    return refuse(logger, "builder");
#endif
}

void* createInferRefitter_INTERNAL(void*, void* logger, int32_t) noexcept { return refuse(logger, "refitter"); }

nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &sdst_mock::PluginRegistry::instance(); }

nvinfer1::IPluginRegistry* nvinfer1::getBuilderPluginRegistry(nvinfer1::EngineCapability) noexcept {
    return &sdst_mock::PluginRegistry::instance();
}

bool initLibNvInferPlugins(void*, const char*) { return true; }

// NvOnnxParser.h is not among the headers of every version.
extern "C" {
__attribute__((visibility("default"))) void* createNvOnnxParser_INTERNAL(void* network, void* logger, int) {
#ifdef SDST_MOCK_BUILDER
    return sdst_mock::make_onnx_parser(network, *static_cast<nvinfer1::ILogger*>(logger));
#else
    static_cast<void>(network);
    return refuse(logger, "ONNX parser");
#endif
}

__attribute__((visibility("default"))) void* createNvOnnxParserRefitter_INTERNAL(void*, void* logger, int) {
    return refuse(logger, "ONNX refitter");
}

__attribute__((visibility("default"))) int getNvOnnxParserVersion() { return NV_TENSORRT_VERSION; }
}
