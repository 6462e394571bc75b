/* libsdst_triton_plugins.so: makes TensorRT know sdst::RDSA in a program that can only open a library, as Triton's
 * --backend-config=tensorrt,plugins=FILE does. As it is opened it hands the plugin library beside it to the registry
 * of the TensorRT that the process has loaded.
 *
 * The registry's table of functions differs between majors, so this is built once for each, and asks the version first.
 * What goes wrong is a line on stderr: a constructor cannot fail.
 */
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {
using GetRegistry = nvinfer1::IPluginRegistry* (*)();
using GetMajor = int32_t (*)();

void say(const std::string& line) { std::fprintf(stderr, "libsdst_triton_plugins.so: %s\n", line.c_str()); }

int keep_tensorrt(dl_phdr_info* loaded, size_t, void* files) {
    const char* slash = std::strrchr(loaded->dlpi_name, '/');
    const char* name = slash == nullptr ? loaded->dlpi_name : slash + 1;
    if (std::strncmp(name, "libnvinfer", std::strlen("libnvinfer")) == 0)
        static_cast<std::vector<std::string>*>(files)->push_back(loaded->dlpi_name);
    return 0;
}

// The registry of a TensorRT of this major in the process; null, and the reason said, when there is none.
nvinfer1::IPluginRegistry* find_registry() {
    std::vector<std::string> files;
    dl_iterate_phdr(keep_tensorrt, &files);
    std::string others;
    for (const std::string& file : files) {
        void* library = dlopen(file.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr) continue;
        const auto get_registry = reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"));
        const auto get_major = reinterpret_cast<GetMajor>(dlsym(library, "getInferLibMajorVersion"));
        if (get_registry == nullptr || get_major == nullptr) continue;
        if (get_major() == NV_TENSORRT_MAJOR) return get_registry();
        others = ", got " + std::to_string(get_major()) + " (" + file + ")";
    }
    say("expected TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + ", whose headers it was built with" +
        (others.empty() ? ", got none in this process" : others) +
        "; build it for yours:  sdst plugins build --tensorrt DIR");
    return nullptr;
}

__attribute__((constructor)) void register_plugin() {
    Dl_info own{};
    if (dladdr(reinterpret_cast<void*>(&register_plugin), &own) == 0) return say("cannot tell where it lies");
    const std::string path = own.dli_fname;
    const std::string plugin = path.substr(0, path.rfind('/') + 1) + SDST_PLUGIN_LIBRARY;
    if (access(plugin.c_str(), R_OK) != 0)
        return say("expected the plugin library beside it, " + plugin + ", got none; copy both into one folder");
    nvinfer1::IPluginRegistry* registry = find_registry();
    if (registry == nullptr || registry->getCreator("RDSA", "1", "sdst") != nullptr) return;
    if (registry->loadLibrary(plugin.c_str()) == nullptr || registry->getCreator("RDSA", "1", "sdst") == nullptr)
        say("TensorRT refused " + plugin + "; build both again:  sdst plugins build --tensorrt DIR");
}
}  // namespace
