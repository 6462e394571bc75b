/* The library under test, opened as TensorRT opens it, and short ways to its plugins. */
#ifndef SDST_CONTRACT_PLUGIN_LIBRARY_H
#define SDST_CONTRACT_PLUGIN_LIBRARY_H

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace contract {

using Plugin = std::unique_ptr<nvinfer1::IPluginV3>;

/* Throws std::runtime_error when the file does not load (all symbols are bound at once: nothing may be missing in a
 * process without TensorRT) or lacks an entry point.
 *
 * `tensorrt`, when it is not empty, is a real library of TensorRT, of the major of the headers that this was compiled
 * with: the creator is then the one that its plugin registry finds. */
class PluginLibrary {
  public:
    explicit PluginLibrary(const std::string& path, const std::string& tensorrt = "");

    nvinfer1::IPluginCreatorInterface* const* (*get_creators)(int32_t& count);
    void (*set_logger_finder)(nvinfer1::ILoggerFinder* finder);
    const char* (*last_error)();
    const char* (*build_info)();

    nvinfer1::IPluginCreatorV3One& creator() const;
    Plugin create(int32_t num_heads, int32_t num_points,
                  nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) const;

    /* Leaves a message in last_error that names no tensor, so that the next one is known to be new. */
    void forget_last_error() const;

  private:
    void* symbol(const char* name) const;
    nvinfer1::IPluginCreatorV3One* find_by(const std::string& tensorrt, const std::string& path) const;

    void* handle_;  // never closed: sanitizers need the library's names until the end
    nvinfer1::IPluginCreatorV3One* creator_;
};

nvinfer1::IPluginV3OneCore& core(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin);

/* The fields of a plugin's plan: copies, as a plan holds them, of which the numbers are not aligned. */
class SerialisedFields {
  public:
    explicit SerialisedFields(const nvinfer1::PluginFieldCollection& fields);

    const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }
    std::string text() const;

  private:
    std::vector<std::string> names_;
    std::vector<std::vector<char>> data_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

}  // namespace contract

#endif
