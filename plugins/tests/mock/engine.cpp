/* Making of the mock's engine from its text, and what the engine and its inspector tell. */
#include "engine.h"

#include <algorithm>
#include <stdexcept>

#include "registry.h"

namespace sdst_mock {
using namespace nvinfer1;

namespace {
constexpr Dims NO_DIMS{-1, {}};

class HostMemory final : public IHostMemory, public UnmockedHostMemory {
  public:
    explicit HostMemory(std::string bytes) : bytes_(std::move(bytes)) { mImpl = this; }
    void* data() const noexcept override { return const_cast<char*>(bytes_.data()); }
    std::size_t size() const noexcept override { return bytes_.size(); }
    DataType type() const noexcept override { return DataType::kINT8; }

  private:
    std::string bytes_;
};

// Of dynamic tensors the format shows only once all shapes are known.
std::string tensors_json(const Plan& plan, const std::vector<std::string>& names, bool has_shapes) {
    std::string json;
    for (const std::string& name : names) {
        const Tensor& tensor = *plan.find(name);
        const Dims dims = declared_dims(tensor);
        const bool shows_format = has_shapes || is_complete(dims);
        json += std::string(json.empty() ? "" : ", ") + R"({"Name": ")" + name + R"(", "Dimensions": )" +
                to_text(dims) + R"(, "Format/Datatype": ")" +
                (shows_format ? type_name(tensor.type) : "N/A due to dynamic shapes") + R"("})";
    }
    return "[" + json + "]";
}

std::string layer_json(const Plan& plan, const Node& node, size_t profile, bool has_shapes) {
    const std::string suffix = profile == 0 ? "" : " [profile " + std::to_string(profile) + "]";
    return R"({"Name": ")" + node.name + suffix + R"(", "LayerType": ")" + (node.is_copy() ? "Identity" : "PLUGIN_V3") +
           R"(", "Inputs": )" + tensors_json(plan, node.reads, has_shapes) + R"(, "Outputs": )" +
           tensors_json(plan, node.writes, has_shapes) + R"(, "PluginType": ")" + node.plugin +
           R"(", "PluginVersion": ")" + node.version + R"(", "PluginNamespace": ")" + node.plugin_namespace + R"("})";
}

// Lists the layers of each profile apart, as TensorRT does.
class Inspector final : public IEngineInspector, public UnmockedEngineInspector {
  public:
    explicit Inspector(const Plan& plan) : plan_(plan) {
        mImpl = this;
        inspect(false);
    }
    IEngineInspector* getPImpl() noexcept override { return this; }
    bool setExecutionContext(const IExecutionContext* context) noexcept override {
        inspect(context != nullptr && context->allInputDimensionsSpecified());
        return true;
    }
    const char* getEngineInformation(LayerInformationFormat) const noexcept override { return engine_.c_str(); }

  private:
    void inspect(bool has_shapes) {
        std::string layers, bindings;
        for (size_t profile = 0; profile < plan_.profiles.size(); ++profile)
            for (const Node& node : plan_.nodes)
                layers += (layers.empty() ? "" : ", ") + layer_json(plan_, node, profile, has_shapes && profile == 0);
        for (const Tensor* tensor : plan_.visible())
            bindings += (bindings.empty() ? "\"" : ", \"") + tensor->name + "\"";
        engine_ = R"({"Layers": [)" + layers + R"(], "Bindings": [)" + bindings + "]}";
    }

    const Plan& plan_;
    std::string engine_;
};

std::unique_ptr<IPluginV3> make_plugin(const Node& node) {
    IPluginCreatorInterface* const creator =
        PluginRegistry::instance().getCreator(node.plugin.c_str(), node.version.c_str(), node.plugin_namespace.c_str());
    if (creator == nullptr)
        throw std::runtime_error("cannot find plugin " + node.plugin + ", version " + node.version + ", namespace " +
                                 node.plugin_namespace + " of node " + node.name);
    std::vector<PluginField> fields;
    for (const auto& [name, value] : node.fields) fields.emplace_back(name.c_str(), &value, PluginFieldType::kINT32, 1);
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> plugin(static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
        node.name.c_str(), &collection, TensorRTPhase::kRUNTIME));
    if (plugin == nullptr)
        throw std::runtime_error("the creator of plugin " + node.plugin + " refused the fields of node " + node.name);
    return plugin;
}
}  // namespace

void log_error(ILogger& logger, const std::string& message) { logger.log(ILogger::Severity::kERROR, message.c_str()); }

IHostMemory* make_host_memory(std::string bytes) { return new HostMemory(std::move(bytes)); }

Runtime::Runtime(ILogger& logger) : logger_(logger) { mImpl = this; }

ICudaEngine* Runtime::deserializeCudaEngine(const void* blob, std::size_t size) noexcept {
    try {
        return new Engine(parse_plan(std::string(static_cast<const char*>(blob), size)), logger_);
    } catch (const std::exception& error) {
        log_error(logger_, std::string("deserializeCudaEngine: ") + error.what());
        return nullptr;
    }
}

IPluginRegistry& Runtime::getPluginRegistry() noexcept { return PluginRegistry::instance(); }

Engine::Engine(Plan plan, ILogger& logger) : plan_(std::move(plan)), logger_(logger) {
    mImpl = this;
    for (const Node& node : plan_.nodes) plugins_.push_back(node.is_copy() ? nullptr : make_plugin(node));
}

const Range* Engine::input_range(const std::string& name, int32_t profile) const {
    if (profile < 0 || profile >= getNbOptimizationProfiles()) return nullptr;
    const auto found = plan_.profiles[profile].find(name);
    return found == plan_.profiles[profile].end() ? nullptr : &found->second;
}

int64_t Engine::max_block_bytes(const Tensor& tensor, int32_t profile) const {
    const Dims dims = resolved_dims(tensor, [&](const std::string& input) { return input_range(input, profile)->max; });
    return (elements(dims) * element_bytes(tensor.type) + 255) / 256 * 256;
}

IHostMemory* Engine::serialize() const noexcept { return make_host_memory(plan_.text); }

IEngineInspector* Engine::createEngineInspector() const noexcept { return new Inspector(plan_); }

IExecutionContext* Engine::createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept {
    try {
        return make_context(*this, strategy).release();
    } catch (const std::exception& error) {
        log_error(logger_, std::string("createExecutionContext: ") + error.what());
        return nullptr;
    }
}

Dims Engine::getTensorShape(const char* tensor_name) const noexcept {
    const Tensor* const tensor = plan_.find_visible(tensor_name);
    return tensor == nullptr ? NO_DIMS : declared_dims(*tensor);
}

DataType Engine::getTensorDataType(const char* tensor_name) const noexcept {
    const Tensor* const tensor = plan_.find_visible(tensor_name);
    return tensor == nullptr ? DataType::kFLOAT : tensor->type;
}

TensorIOMode Engine::getTensorIOMode(const char* tensor_name) const noexcept {
    const Tensor* const tensor = plan_.find_visible(tensor_name);
    if (tensor == nullptr) return TensorIOMode::kNONE;
    return tensor->role == Role::INPUT ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}

Dims Engine::getProfileShape(const char* tensor_name, int32_t profile_index, OptProfileSelector select) const noexcept {
    const Range* const range = input_range(tensor_name, profile_index);
    if (range == nullptr) return NO_DIMS;
    switch (select) {
        case OptProfileSelector::kMIN: return range->min;
        case OptProfileSelector::kOPT: return range->opt;
        default: return range->max;
    }
}

const char* Engine::getIOTensorName(int32_t index) const noexcept {
    return index >= 0 && index < getNbIOTensors() ? plan_.visible()[index]->name.c_str() : nullptr;
}

int64_t Engine::getDeviceMemorySizeV2() const noexcept {
    int64_t largest = 0;
    for (int32_t profile = 0; profile < getNbOptimizationProfiles(); ++profile)
        largest = std::max(largest, getDeviceMemorySizeForProfileV2(profile));
    return largest;
}

int64_t Engine::getDeviceMemorySizeForProfileV2(int32_t profile_index) const noexcept {
    if (profile_index < 0 || profile_index >= getNbOptimizationProfiles()) return -1;
    int64_t bytes = 0;
    for (const Tensor& tensor : plan_.tensors)
        if (tensor.role == Role::INTERNAL) bytes += max_block_bytes(tensor, profile_index);
    return bytes;
}
}  // namespace sdst_mock
