/* The mock's builder: a network that an ONNX file brings as the text of an engine, and the engine made of it. */
#ifndef SDST_MOCK_BUILDER_H
#define SDST_MOCK_BUILDER_H

#include <memory>
#include <string>
#include <vector>

#include "plan.h"
#include "unmocked.h"

namespace sdst_mock {
class Layer;

// A network is the text of an engine; its layers are the plugin nodes of that text.
class Network final : public nvinfer1::INetworkDefinition, public nvinfer1::UnmockedNetworkDefinition {
  public:
    Network();
    ~Network() noexcept override;

    // Throws std::runtime_error when the text is none of an engine.
    void take(const std::string& text);
    const std::string& text() const { return text_; }

    int32_t getNbLayers() const noexcept override;
    nvinfer1::ILayer* getLayer(int32_t index) const noexcept override;

  private:
    std::string text_;
    std::vector<std::unique_ptr<Layer>> layers_;
};

// Both are what the bindings expect behind void*: IBuilder* and IParser*.
void* make_builder(nvinfer1::ILogger& logger);
void* make_onnx_parser(void* network, nvinfer1::ILogger& logger);
}  // namespace sdst_mock

#endif
