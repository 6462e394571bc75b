/* The mock's ONNX parser. It reads of the file only its metadata entry "sdst.mock", the text of an engine, and refuses
 * a model with functions: of a node with a function and a plugin some versions of TensorRT build the function. */
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "builder.h"
#include "engine.h"

namespace sdst_mock {
namespace {
// Numbers of fields in onnx.proto.
constexpr uint64_t MODEL_METADATA = 14, MODEL_FUNCTIONS = 25, ENTRY_KEY = 1, ENTRY_VALUE = 2;
constexpr std::string_view KEY = "sdst.mock";

struct Field {
    uint64_t number;
    std::string_view bytes;  // empty for numbers
};

uint64_t read_varint(std::string_view& message) {
    uint64_t value = 0;
    for (uint32_t shift = 0; !message.empty() && shift < 64; shift += 7) {
        const auto byte = static_cast<unsigned char>(message.front());
        message.remove_prefix(1);
        value |= static_cast<uint64_t>(byte & 0x7F) << shift;
        if ((byte & 0x80) == 0) return value;
    }
    throw std::runtime_error("the file is no ONNX model");
}

// The next field of a protobuf message, which is then gone from `message`.
Field read_field(std::string_view& message) {
    const uint64_t tag = read_varint(message);
    Field field{tag >> 3, {}};
    uint64_t size = 0;
    switch (tag & 7) {
        case 0: read_varint(message); return field;
        case 1: size = 8; break;
        case 2: size = read_varint(message); break;
        case 5: size = 4; break;
        default: throw std::runtime_error("the file is no ONNX model");
    }
    if (size > message.size()) throw std::runtime_error("the file is cut short");
    field.bytes = message.substr(0, size);
    message.remove_prefix(size);
    return field;
}

std::string entry_value(std::string_view entry) {
    std::string_view key, value;
    while (!entry.empty()) {
        const Field field = read_field(entry);
        if (field.number == ENTRY_KEY) key = field.bytes;
        if (field.number == ENTRY_VALUE) value = field.bytes;
    }
    return key == KEY ? std::string(value) : std::string();
}

std::string engine_text(std::string_view model) {
    std::string text;
    while (!model.empty()) {
        const Field field = read_field(model);
        if (field.number == MODEL_FUNCTIONS) throw std::runtime_error("the model has a function");
        if (field.number == MODEL_METADATA && text.empty()) text = entry_value(field.bytes);
    }
    if (text.empty()) throw std::runtime_error("the model has no metadata entry sdst.mock");
    return text;
}

class ParserError final : public nvonnxparser::UnmockedParserError {
  public:
    explicit ParserError(std::string words) : words_(std::move(words)) {}
    const char* desc() const override { return words_.c_str(); }
    int node() const override { return 3; }
    const char* nodeName() const override { return "node_of_the_mock"; }
    const char* nodeOperator() const override { return "OpOfTheMock"; }

  private:
    std::string words_;
};

class OnnxParser final : public nvonnxparser::UnmockedParser {
  public:
    explicit OnnxParser(Network& network) : network_(network) {}

    bool parse(const void* model, size_t size, const char*) noexcept override {
        try {
            network_.take(engine_text({static_cast<const char*>(model), size}));
            return true;
        } catch (const std::exception& error) {
            errors_.emplace_back(error.what());
            return false;
        }
    }
    int getNbErrors() const noexcept override { return static_cast<int>(errors_.size()); }
    const nvonnxparser::IParserError* getError(int index) const noexcept override { return &errors_.at(index); }

  private:
    Network& network_;
    std::vector<ParserError> errors_;
};
}  // namespace

void* make_onnx_parser(void* network, nvinfer1::ILogger&) {
    auto* const definition = static_cast<nvinfer1::INetworkDefinition*>(network);
    nvonnxparser::IParser* const parser = new OnnxParser(static_cast<Network&>(*definition));
    return parser;
}
}  // namespace sdst_mock
