/* dlopen, getCreators, setLoggerFinder: what TensorRT does with a plugin library. */
#include "registry.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace sdst_mock {
using namespace nvinfer1;

namespace {
using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
using SetLoggerFinder = void (*)(ILoggerFinder*);

// A plugin must do without a logger: each TensorRT major has its own.
class NoLoggerFinder final : public ILoggerFinder {
  public:
    ILogger* findLogger() override { return nullptr; }
};

// The only kind of creator that the mock can use, and the only one in TensorRT 11. Null when it is another.
IPluginCreatorV3One* as_v3(IPluginCreatorInterface* creator) {
    const bool isV3 = std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0;
    return isV3 ? static_cast<IPluginCreatorV3One*>(creator) : nullptr;
}

// TensorRT's registry has no logger of its own either; this goes to stderr.
bool refuse(const char* path, const char* why) {
    std::fprintf(stderr, "mock libnvinfer: plugin library %s was not loaded: %s\n", path, why);
    return false;
}
}  // namespace

PluginRegistry& PluginRegistry::instance() {
    static PluginRegistry registry;
    return registry;
}

void* PluginRegistry::loadLibrary(const char* path) noexcept {
    // RTLD_NOW: an undefined symbol of TensorRT shows here, not at the first use.
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
        refuse(path, dlerror());
    else if (add_creators(library, path))
        return library;
    else
        dlclose(library);
    return nullptr;
}

bool PluginRegistry::add_creators(void* library, const char* path) {
    const auto getCreators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    if (getCreators == nullptr) return refuse(path, "it does not export getCreators");
    static NoLoggerFinder finder;
    if (const auto setLoggerFinder = reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder")))
        setLoggerFinder(&finder);
    int32_t count = 0;
    IPluginCreatorInterface* const* creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i) {
        IPluginCreatorV3One* const creator = as_v3(creators[i]);
        if (creator == nullptr) return refuse(path, "a creator is no IPluginCreatorV3One");
        if (getCreator(creator->getPluginName(), creator->getPluginVersion(), creator->getPluginNamespace()) != nullptr)
            return refuse(path, "one of its plugins is already registered");
    }
    for (int32_t i = 0; i < count; ++i) {
        creators_.push_back(creators[i]);
        libraries_.push_back(library);
    }
    return true;
}

void PluginRegistry::deregisterLibrary(void* handle) noexcept {
    for (size_t i = libraries_.size(); i-- > 0;)
        if (libraries_[i] == handle) {
            libraries_.erase(libraries_.begin() + i);
            creators_.erase(creators_.begin() + i);
        }
    dlclose(handle);
}

IPluginCreatorInterface* const* PluginRegistry::getAllCreators(int32_t* count) const noexcept {
    *count = static_cast<int32_t>(creators_.size());
    return creators_.data();
}

IPluginCreatorInterface* PluginRegistry::getCreator(const char* name, const char* version,
                                                    const char* plugin_namespace) noexcept {
    for (IPluginCreatorInterface* candidate : creators_) {
        IPluginCreatorV3One* const creator = as_v3(candidate);
        if (std::strcmp(creator->getPluginName(), name) == 0 &&
            std::strcmp(creator->getPluginVersion(), version) == 0 &&
            std::strcmp(creator->getPluginNamespace(), plugin_namespace) == 0)
            return candidate;
    }
    return nullptr;
}
}  // namespace sdst_mock
