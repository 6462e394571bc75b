/* The mock's execution context: shapes and addresses as TensorRT checks them, and each node's plugin run in turn. */
#include <cstring>
#include <map>
#include <stdexcept>

#include "engine.h"

namespace sdst_mock {
using namespace nvinfer1;

namespace {
constexpr int64_t ALIGNMENT = 256;  // NvInferRuntime.h asks this of every tensor's address

class ResourceContext final : public IPluginResourceContext {
  public:
    IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

IPluginV3OneRuntime& runtime_of(IPluginV3& plugin) {
    auto* const capability = plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME);
    if (capability == nullptr) throw std::runtime_error("a plugin has no runtime capability");
    return *static_cast<IPluginV3OneRuntime*>(capability);
}

bool is_within(const Dims& dims, const Range& range) {
    if (dims.nbDims != range.min.nbDims) return false;
    for (int32_t i = 0; i < dims.nbDims; ++i)
        if (dims.d[i] < range.min.d[i] || dims.d[i] > range.max.d[i]) return false;
    return true;
}

class Context final : public IExecutionContext, public UnmockedExecutionContext {
  public:
    Context(const Engine& engine, ExecutionContextAllocationStrategy strategy);

    IExecutionContext* getPImpl() noexcept override { return this; }
    const ICudaEngine& getEngine() const noexcept override { return engine_; }
    int32_t getOptimizationProfile() const noexcept override { return profile_; }
    bool allInputDimensionsSpecified() const noexcept override { return missing_inputs().empty(); }
    bool setOptimizationProfileAsync(int32_t profile_index, cudaStream_t stream) noexcept override;
    bool setInputShape(const char* tensor_name, const Dims& dims) noexcept override;
    Dims getTensorShape(const char* tensor_name) const noexcept override;
    Dims getTensorStrides(const char* tensor_name) const noexcept override;
    bool setTensorAddress(const char* tensor_name, void* data) noexcept override;
    const void* getTensorAddress(const char* tensor_name) const noexcept override;
    int32_t inferShapes(int32_t most_names, const char** tensor_names) noexcept override;
    int64_t getMaxOutputSize(const char* tensor_name) const noexcept override;
    void setDeviceMemoryV2(void* memory, int64_t size) noexcept override;
    bool enqueueV3(cudaStream_t stream) noexcept override;

  private:
    struct Step {
        std::vector<PluginTensorDesc> read_descs, write_descs;
        std::vector<const void*> reads;
        std::vector<void*> writes;
    };

    bool fail(const std::string& message) const;
    Dims input_dims(const std::string& name) const;
    Dims dims_of(const Tensor& tensor) const;
    std::vector<const Tensor*> missing_inputs() const;
    bool is_ready() const;
    void place_internals();
    PluginTensorDesc desc_of(const std::string& name) const;
    Step step_of(const Node& node) const;
    bool run_node(size_t index, cudaStream_t stream);
    bool copy(const Node& node) const;

    const Engine& engine_;
    ResourceContext resources_;
    std::vector<std::unique_ptr<IPluginV3>> plugins_;  // of each node, attached to this context; of a copy null
    const bool user_managed_;
    int32_t profile_{0};
    bool shapes_changed_{true};
    std::map<std::string, Dims> input_dims_;
    std::map<std::string, void*> addresses_;
    std::vector<char> own_memory_;
    char* memory_{nullptr};
    int64_t memory_bytes_{0};
};

Context::Context(const Engine& engine, ExecutionContextAllocationStrategy strategy)
    : engine_(engine), user_managed_(strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED) {
    mImpl = this;
    for (size_t i = 0; i < engine.plan().nodes.size(); ++i) {
        if (engine.plan().nodes[i].is_copy()) {
            plugins_.push_back(nullptr);
            continue;
        }
        plugins_.emplace_back(runtime_of(engine.plugin(i)).attachToContext(&resources_));
        if (plugins_.back() == nullptr)
            throw std::runtime_error("attachToContext failed in node " + engine.plan().nodes[i].name);
    }
    if (user_managed_) return;
    own_memory_.resize(engine.getDeviceMemorySizeV2());
    memory_ = own_memory_.data();
    memory_bytes_ = static_cast<int64_t>(own_memory_.size());
}

bool Context::fail(const std::string& message) const {
    log_error(engine_.logger(), message);
    return false;
}

Dims Context::input_dims(const std::string& name) const {
    const auto found = input_dims_.find(name);
    return found == input_dims_.end() ? declared_dims(*engine_.plan().find(name)) : found->second;
}

Dims Context::dims_of(const Tensor& tensor) const {
    return resolved_dims(tensor, [this](const std::string& input) { return input_dims(input); });
}

std::vector<const Tensor*> Context::missing_inputs() const {
    std::vector<const Tensor*> missing;
    for (const Tensor& tensor : engine_.plan().tensors)
        if (tensor.role == Role::INPUT && !is_complete(input_dims(tensor.name))) missing.push_back(&tensor);
    return missing;
}

bool Context::setOptimizationProfileAsync(int32_t profile_index, cudaStream_t) noexcept {
    if (profile_index < 0 || profile_index >= engine_.getNbOptimizationProfiles())
        return fail("setOptimizationProfileAsync: there is no profile " + std::to_string(profile_index));
    if (profile_index != profile_) input_dims_.clear();
    profile_ = profile_index;
    shapes_changed_ = true;
    return true;
}

bool Context::setInputShape(const char* tensor_name, const Dims& dims) noexcept {
    const Range* const range = engine_.input_range(tensor_name, profile_);
    if (range == nullptr) return fail(std::string("setInputShape: there is no input ") + tensor_name);
    if (!is_within(dims, *range))
        return fail(std::string("setInputShape: ") + tensor_name + " of shape " + to_text(dims) +
                    " does not satisfy optimization profile " + std::to_string(profile_) + ", which takes " +
                    to_text(range->min) + " to " + to_text(range->max));
    input_dims_[tensor_name] = dims;
    shapes_changed_ = true;
    return true;
}

Dims Context::getTensorShape(const char* tensor_name) const noexcept {
    const Tensor* const tensor = engine_.plan().find_visible(tensor_name);
    return tensor == nullptr ? Dims{-1, {}} : dims_of(*tensor);
}

Dims Context::getTensorStrides(const char* tensor_name) const noexcept {
    const Dims dims = getTensorShape(tensor_name);
    if (dims.nbDims < 0 || !is_complete(dims)) return Dims{-1, {}};
    Dims strides{dims.nbDims, {}};
    int64_t stride = 1;
    for (int32_t i = dims.nbDims; i-- > 0; stride *= dims.d[i]) strides.d[i] = stride;
    return strides;
}

bool Context::setTensorAddress(const char* tensor_name, void* data) noexcept {
    if (engine_.plan().find_visible(tensor_name) == nullptr)
        return fail(std::string("setTensorAddress: there is no input or output ") + tensor_name);
    if (reinterpret_cast<uintptr_t>(data) % ALIGNMENT != 0)
        return fail(std::string("setTensorAddress: the address of ") + tensor_name + " is not aligned to 256 bytes");
    addresses_[tensor_name] = data;
    return true;
}

const void* Context::getTensorAddress(const char* tensor_name) const noexcept {
    const auto found = addresses_.find(tensor_name);
    return found == addresses_.end() ? nullptr : found->second;
}

int32_t Context::inferShapes(int32_t most_names, const char** tensor_names) noexcept {
    const std::vector<const Tensor*> missing = missing_inputs();
    if (most_names < 0 || (tensor_names == nullptr && most_names != 0)) return -1;
    for (size_t i = 0; i < missing.size() && i < static_cast<size_t>(most_names); ++i)
        tensor_names[i] = missing[i]->name.c_str();
    return static_cast<int32_t>(missing.size());
}

int64_t Context::getMaxOutputSize(const char* tensor_name) const noexcept {
    const Tensor* const tensor = engine_.plan().find_visible(tensor_name);
    if (tensor == nullptr || tensor->role != Role::OUTPUT || !missing_inputs().empty()) return -1;
    return engine_.max_block_bytes(*tensor, profile_);
}

void Context::setDeviceMemoryV2(void* memory, int64_t size) noexcept {
    if (!user_managed_) {
        fail("setDeviceMemoryV2: the context was created with memory of its own");
        return;
    }
    memory_ = static_cast<char*>(memory);
    memory_bytes_ = size;
}

bool Context::is_ready() const {
    for (const Tensor* tensor : missing_inputs())
        return fail("enqueueV3: the shape of input " + tensor->name + " is not set");
    for (const Tensor* tensor : engine_.plan().visible())
        if (getTensorAddress(tensor->name.c_str()) == nullptr)
            return fail("enqueueV3: the address of " + tensor->name + " is not set");
    const int64_t wanted = engine_.getDeviceMemorySizeForProfileV2(profile_);
    if (memory_bytes_ < wanted || (memory_ == nullptr && wanted > 0))
        return fail("enqueueV3: the context needs " + std::to_string(wanted) + " bytes of device memory, it has " +
                    std::to_string(memory_bytes_));
    return true;
}

void Context::place_internals() {
    char* next = memory_;
    for (const Tensor& tensor : engine_.plan().tensors)
        if (tensor.role == Role::INTERNAL) {
            addresses_[tensor.name] = next;
            next += engine_.max_block_bytes(tensor, profile_);
        }
}

PluginTensorDesc Context::desc_of(const std::string& name) const {
    const Tensor& tensor = *engine_.plan().find(name);
    return {dims_of(tensor), tensor.type, TensorFormat::kLINEAR, 1.0F};
}

Context::Step Context::step_of(const Node& node) const {
    Step step;
    for (const std::string& name : node.reads) {
        step.read_descs.push_back(desc_of(name));
        step.reads.push_back(addresses_.at(name));
    }
    for (const std::string& name : node.writes) {
        step.write_descs.push_back(desc_of(name));
        step.writes.push_back(addresses_.at(name));
    }
    return step;
}

bool Context::copy(const Node& node) const {
    const Tensor &from = *engine_.plan().find(node.reads.at(0)), &to = *engine_.plan().find(node.writes.at(0));
    const int64_t bytes = elements(dims_of(to)) * element_bytes(to.type), start = node.fields.at(0).second;
    if (start + bytes > elements(dims_of(from)) * element_bytes(from.type))
        return fail("enqueueV3: node " + node.name + " copies more than there is");
    std::memcpy(addresses_.at(to.name), static_cast<const char*>(addresses_.at(from.name)) + start, bytes);
    return true;
}

bool Context::run_node(size_t index, cudaStream_t stream) {
    const Node& node = engine_.plan().nodes[index];
    if (node.is_copy()) return copy(node);
    IPluginV3OneRuntime& plugin = runtime_of(*plugins_[index]);
    const Step step = step_of(node);
    if (shapes_changed_ &&
        plugin.onShapeChange(step.read_descs.data(), static_cast<int32_t>(step.read_descs.size()),
                             step.write_descs.data(), static_cast<int32_t>(step.write_descs.size())) != 0)
        return fail("enqueueV3: plugin " + node.plugin + " of node " + node.name +
                    " refused the shapes in onShapeChange");
    const int32_t status = plugin.enqueue(step.read_descs.data(), step.write_descs.data(), step.reads.data(),
                                          step.writes.data(), nullptr, stream);
    if (status != 0)
        return fail("enqueueV3: plugin " + node.plugin + " of node " + node.name + " failed in enqueue with status " +
                    std::to_string(status));
    return true;
}

bool Context::enqueueV3(cudaStream_t stream) noexcept {
    if (!is_ready()) return false;
    place_internals();
    for (size_t i = 0; i < plugins_.size(); ++i)
        if (!run_node(i, stream)) return false;
    shapes_changed_ = false;
    return true;
}
}  // namespace

std::unique_ptr<IExecutionContext> make_context(const Engine& engine, ExecutionContextAllocationStrategy strategy) {
    return std::make_unique<Context>(engine, strategy);
}
}  // namespace sdst_mock
