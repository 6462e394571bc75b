/* The mock's engine: a text that says what TensorRT's plan would, with plugin nodes and copies only. Written by
 * tests/mocked_tensorrt.py, one statement a line, words parted by spaces. A DIM is a number, -1 when it is dynamic.
 *
 *     sdst-mock-engine 1
 *     tensor NAME input TYPE DIM...             TYPE: float, half, int32, ...
 *     tensor NAME output|internal TYPE DIM...   here a DIM may be INPUT:AXIS, the size of an input's axis
 *     profile                                   opens an optimization profile
 *     shape NAME DIM... | DIM... | DIM...       of an input with a dynamic DIM: minimum, optimum, maximum
 *     node NAME PLUGIN VERSION NAMESPACE        the lines after it are this node's
 *                                               PLUGIN "copy" is the mock's own: bytes of what it reads, from the
 *                                               byte of its first field on, become what it writes
 *     field NAME VALUE                          an int32
 *     reads NAME...
 *     writes NAME...
 *     note WORD...                              what the builder was asked for; nothing reads it but a test
 *     adler32 HEX                               of all bytes before this line
 */
#ifndef SDST_MOCK_PLAN_H
#define SDST_MOCK_PLAN_H

#include <NvInferRuntime.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace sdst_mock {
using nvinfer1::DataType;
using nvinfer1::Dims;

struct Dimension {
    int64_t size;  // -1: dynamic, or given by the axis of an input when `input` has a name
    std::string input;
    int32_t axis;
};

enum class Role { INPUT, OUTPUT, INTERNAL };

struct Tensor {
    std::string name;
    Role role;
    DataType type;
    std::vector<Dimension> dimensions;
};

struct Range {
    Dims min, opt, max;
};

// Of every input, also of those without a dynamic dimension.
using Profile = std::map<std::string, Range>;

struct Node {
    std::string name, plugin, version, plugin_namespace;
    std::vector<std::pair<std::string, int32_t>> fields;
    std::vector<std::string> reads, writes;

    bool is_copy() const { return plugin == "copy"; }
};

struct Plan {
    std::vector<Tensor> tensors;
    std::vector<Profile> profiles;  // at least one
    std::vector<Node> nodes;
    std::string text;

    // Null when there is none of that name; find_visible also when it is internal.
    const Tensor* find(const std::string& name) const;
    const Tensor* find_visible(const std::string& name) const;
    // Inputs and outputs in the order of the text.
    std::vector<const Tensor*> visible() const;
};

// Throws std::runtime_error with one line when the text is truncated, altered or senseless.
Plan parse_plan(std::string text);

// The text with these profiles in place of its own, and these notes.
std::string rebuilt_text(const std::string& text, const std::vector<Profile>& profiles,
                         const std::vector<std::string>& notes);

// Dims with -1 where a dimension is dynamic.
Dims declared_dims(const Tensor& tensor);
// Dims of a tensor under the given dims of the inputs; -1 where those are -1.
Dims resolved_dims(const Tensor& tensor, const std::function<Dims(const std::string&)>& input_dims);

bool is_complete(const Dims& dims);
int64_t elements(const Dims& dims);
int64_t element_bytes(DataType type);
const char* type_name(DataType type);
std::string to_text(const Dims& dims);  // [2, -1, 32]
}  // namespace sdst_mock

#endif
