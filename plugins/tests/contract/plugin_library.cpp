#include "plugin_library.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

namespace contract {

using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

PluginLibrary::PluginLibrary(const std::string& path, const std::string& tensorrt)
    : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw std::runtime_error(dlerror());
    get_creators = reinterpret_cast<decltype(get_creators)>(symbol("getCreators"));
    set_logger_finder = reinterpret_cast<decltype(set_logger_finder)>(symbol("setLoggerFinder"));
    last_error = reinterpret_cast<decltype(last_error)>(symbol("sdst_last_error"));
    build_info = reinterpret_cast<decltype(build_info)>(symbol("sdst_build_info"));
    symbol("sdst_rdsa");
    int32_t count = 0;
    creator_ = tensorrt.empty() ? static_cast<nvinfer1::IPluginCreatorV3One*>(get_creators(count)[0])
                                : find_by(tensorrt, path);
}

nvinfer1::IPluginCreatorV3One* PluginLibrary::find_by(const std::string& tensorrt, const std::string& path) const {
    void* library = dlopen(tensorrt.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(dlerror());
    using GetRegistry = nvinfer1::IPluginRegistry* (*)();
    const auto get_registry = reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"));
    if (get_registry == nullptr) throw std::runtime_error(tensorrt + ": expected getPluginRegistry, got none");
    nvinfer1::IPluginRegistry& registry = *get_registry();
    if (registry.loadLibrary(path.c_str()) == nullptr) throw std::runtime_error("the registry refused " + path);
    nvinfer1::IPluginCreatorInterface* found = registry.getCreator("RDSA", "1", "sdst");
    if (found == nullptr) throw std::runtime_error("the registry does not find sdst::RDSA version 1");
    return static_cast<nvinfer1::IPluginCreatorV3One*>(found);
}

void* PluginLibrary::symbol(const char* name) const {
    void* found = dlsym(handle_, name);
    if (found == nullptr) throw std::runtime_error(std::string("expected the export ") + name + ", got none");
    return found;
}

nvinfer1::IPluginCreatorV3One& PluginLibrary::creator() const { return *creator_; }

Plugin PluginLibrary::create(int32_t num_heads, int32_t num_points, nvinfer1::TensorRTPhase phase) const {
    const PluginField fields[] = {{"num_heads", &num_heads, PluginFieldType::kINT32, 1},
                                  {"num_points", &num_points, PluginFieldType::kINT32, 1}};
    const nvinfer1::PluginFieldCollection collection = {2, fields};
    Plugin plugin(creator().createPlugin("step", &collection, phase));
    if (plugin == nullptr) throw std::runtime_error(std::string("createPlugin: ") + last_error());
    return plugin;
}

void PluginLibrary::forget_last_error() const {
    creator().createPlugin("none", nullptr, nvinfer1::TensorRTPhase::kBUILD);
}

nvinfer1::IPluginV3OneCore& core(nvinfer1::IPluginV3& plugin) {
    return *static_cast<nvinfer1::IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE));
}

nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin) {
    return *static_cast<nvinfer1::IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin) {
    return *static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

SerialisedFields::SerialisedFields(const nvinfer1::PluginFieldCollection& fields) {
    names_.reserve(fields.nbFields);
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        if (field.type != PluginFieldType::kINT32)
            throw std::runtime_error("expected INT32 fields in a plan, got others");
        names_.emplace_back(field.name);
        data_.emplace_back(1 + sizeof(int32_t) * field.length);
        std::memcpy(data_.back().data() + 1, field.data, sizeof(int32_t) * field.length);
        fields_.emplace_back(names_.back().c_str(), data_.back().data() + 1, field.type, field.length);
    }
    collection_ = {fields.nbFields, fields_.data()};
}

std::string SerialisedFields::text() const {
    std::string text;
    for (const PluginField& field : fields_) {
        int32_t number = 0;
        std::memcpy(&number, field.data, sizeof number);
        text += std::string(field.name) + "=" + std::to_string(number) + "*" + std::to_string(field.length) + " ";
    }
    return text;
}

}  // namespace contract
