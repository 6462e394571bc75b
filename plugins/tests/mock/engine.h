/* The mock's runtime, engine and execution context. Each is TensorRT's class and, in mImpl, its implementation at once.
 */
#ifndef SDST_MOCK_ENGINE_H
#define SDST_MOCK_ENGINE_H

#include <memory>
#include <string>
#include <vector>

#include "plan.h"
#include "unmocked.h"

namespace sdst_mock {
void log_error(nvinfer1::ILogger& logger, const std::string& message);
// Owned by the caller, as TensorRT's are.
nvinfer1::IHostMemory* make_host_memory(std::string bytes);

class Runtime final : public nvinfer1::IRuntime, public nvinfer1::UnmockedRuntime {
  public:
    explicit Runtime(nvinfer1::ILogger& logger);

    nvinfer1::IRuntime* getPImpl() noexcept override { return this; }
    // Null, and an error in the log, for a text that parse_plan refuses or a plugin that is not registered or fails.
    nvinfer1::ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override;
    nvinfer1::ILogger* getLogger() const noexcept override { return &logger_; }
    nvinfer1::IPluginRegistry& getPluginRegistry() noexcept override;
    void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_allowed_ = allowed; }
    bool getEngineHostCodeAllowed() const noexcept override { return host_code_allowed_; }

  private:
    nvinfer1::ILogger& logger_;
    bool host_code_allowed_{false};
};

class Engine final : public nvinfer1::ICudaEngine, public nvinfer1::UnmockedCudaEngine {
  public:
    // Throws std::runtime_error when a plugin is not registered or cannot be created.
    Engine(Plan plan, nvinfer1::ILogger& logger);

    const Plan& plan() const { return plan_; }
    nvinfer1::ILogger& logger() const { return logger_; }
    nvinfer1::IPluginV3& plugin(size_t node) const { return *plugins_[node]; }
    // Null when there is no input of that name.
    const Range* input_range(const std::string& name, int32_t profile) const;
    // Bytes of a tensor at the largest shapes of a profile, in whole blocks of 256.
    int64_t max_block_bytes(const Tensor& tensor, int32_t profile) const;

    nvinfer1::ICudaEngine* getPImpl() noexcept override { return this; }
    int32_t getNbLayers() const noexcept override { return static_cast<int32_t>(plan_.nodes.size()); }
    nvinfer1::IHostMemory* serialize() const noexcept override;
    nvinfer1::IExecutionContext* createExecutionContext(
        nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
    const char* getName() const noexcept override { return "mock"; }
    int32_t getNbOptimizationProfiles() const noexcept override { return static_cast<int32_t>(plan_.profiles.size()); }
    nvinfer1::ProfilingVerbosity getProfilingVerbosity() const noexcept override {
        return nvinfer1::ProfilingVerbosity::kDETAILED;
    }
    nvinfer1::IEngineInspector* createEngineInspector() const noexcept override;
    Dims getTensorShape(const char* tensor_name) const noexcept override;
    DataType getTensorDataType(const char* tensor_name) const noexcept override;
    nvinfer1::TensorLocation getTensorLocation(const char*) const noexcept override {
        return nvinfer1::TensorLocation::kDEVICE;
    }
    bool isShapeInferenceIO(const char*) const noexcept override { return false; }
    nvinfer1::TensorIOMode getTensorIOMode(const char* tensor_name) const noexcept override;
    nvinfer1::TensorFormat getTensorFormat(const char*) const noexcept override {
        return nvinfer1::TensorFormat::kLINEAR;
    }
    Dims getProfileShape(const char* tensor_name, int32_t profile_index,
                         nvinfer1::OptProfileSelector select) const noexcept override;
    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(plan_.visible().size()); }
    const char* getIOTensorName(int32_t index) const noexcept override;
    int32_t getNbAuxStreams() const noexcept override { return 0; }
    int64_t getDeviceMemorySizeV2() const noexcept override;
    int64_t getDeviceMemorySizeForProfileV2(int32_t profile_index) const noexcept override;
#if NV_TENSORRT_MAJOR < 11
    // What the bindings of 10.3 call for get_device_memory_size_for_profile_v2.
    size_t getDeviceMemorySizeForProfile(int32_t profile_index) const noexcept override {
        return static_cast<size_t>(getDeviceMemorySizeForProfileV2(profile_index));
    }
#endif

  private:
    Plan plan_;
    nvinfer1::ILogger& logger_;
    std::vector<std::unique_ptr<nvinfer1::IPluginV3>> plugins_;  // of each node; of a copy null
};

// An execution context of `engine`. Throws std::runtime_error when a plugin does not attach.
std::unique_ptr<nvinfer1::IExecutionContext> make_context(const Engine& engine,
                                                          nvinfer1::ExecutionContextAllocationStrategy strategy);
}  // namespace sdst_mock

#endif
