#include "tensor_checks.h"

#include <array>
#include <string>

#include "error.h"
#include "rdsa_limits.h"
#include "sdst/rdsa.h"

namespace sdst {
namespace {

using nvinfer1::DataType;

enum SizeIndex { B, T, M, F, E, PAIR, SIZES };
constexpr const char* SIZE_NAMES[SIZES] = {"B", "T", "M", "F", "E", "2"};
constexpr int64_t UNKNOWN = -1;

struct Signature {
    const char* name;
    int32_t rank;
    SizeIndex sizes[3];
};
constexpr Signature SIGNATURES[INPUTS + OUTPUTS] = {
    {"value", 3, {B, T, F}}, {"endpoints", 3, {B, T, E}}, {"reference", 3, {B, M, PAIR}},
    {"length", 1, {B}},      {"out", 3, {B, M, F}},
};

int bad(const std::string& what, const std::string& expected, const std::string& got) {
    return fail(SDST_BAD_ARGUMENT, "RDSA: " + what + ": expected " + expected + ", got " + got);
}

std::string to_string(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return "float";
        case DataType::kHALF: return "half";
        case DataType::kBF16: return "bfloat16";
        case DataType::kINT32: return "int32";
        case DataType::kINT64: return "int64";
        default: return "type " + std::to_string(static_cast<int32_t>(type));
    }
}

std::string expected_type(int32_t tensor, DataType value_type) {
    switch (tensor) {
        case VALUE: return "half or float";
        case LENGTH: return "int32";
        case OUT: return to_string(value_type) + " as value";
        default: return "float";
    }
}

int check_type(int32_t tensor, DataType type, DataType value_type) {
    if (takes_type(tensor, type, value_type)) return SDST_OK;
    return bad(SIGNATURES[tensor].name, expected_type(tensor, value_type), to_string(type));
}

int check_storage(int32_t tensor, const nvinfer1::PluginTensorDesc& desc, DataType value_type) {
    if (const int status = check_type(tensor, desc.type, value_type)) return status;
    if (desc.format == nvinfer1::TensorFormat::kLINEAR) return SDST_OK;
    const std::string format = "format " + std::to_string(static_cast<int32_t>(desc.format));
    return bad(SIGNATURES[tensor].name, "the linear format", format);
}

std::string to_string(const nvinfer1::Dims& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : " ") + std::to_string(dims.d[i]);
    return text + "]";
}

/* The numbers behind the letters of one call, learnt from tensor after tensor. */
class Sizes {
  public:
    explicit Sizes(const Attributes& attributes) : attributes_(attributes) {
        numbers_.fill(UNKNOWN);
        numbers_[E] = int64_t{3 * 2} * attributes.num_heads * attributes.num_points;
        numbers_[PAIR] = 2;
    }

    int learn(int32_t tensor, const nvinfer1::Dims& dims, bool wildcards = false) {
        const Signature& signature = SIGNATURES[tensor];
        const auto before = numbers_;
        bool fits = dims.nbDims == signature.rank;
        for (int32_t i = 0; fits && i < signature.rank; ++i) {
            fits = learn_one(numbers_[signature.sizes[i]], dims.d[i], wildcards);
        }
        return fits ? SDST_OK : bad(signature.name, describe(signature, before), to_string(dims));
    }

    /* What sdst_rdsa demands beyond the agreement of the tensors; of the sizes that are known. */
    int check_limits(DataType value_type) const {
        const struct {
            int32_t tensor;
            SizeIndex size;
            int64_t least, most;
        } limits[] = {{VALUE, B, 0, MOST_ROWS}, {VALUE, T, 1, MOST_CLIPS}, {REFERENCE, M, 0, MOST_ROWS}};
        for (const auto& [tensor, size, least, most] : limits) {
            if (numbers_[size] == UNKNOWN || (numbers_[size] >= least && numbers_[size] <= most)) continue;
            return bad(SIGNATURES[tensor].name,
                       SIZE_NAMES[size] + (" of " + std::to_string(least)) + " to " + std::to_string(most),
                       std::to_string(numbers_[size]));
        }
        if (const int status = check_depth()) return status;
        if (const int status = check_video(VALUE, F, value_type == DataType::kFLOAT ? 4 : 2)) return status;
        return check_video(ENDPOINTS, E, 4);
    }

  private:
    static bool learn_one(int64_t& number, int64_t dimension, bool wildcards) {
        if (dimension == UNKNOWN) return wildcards;
        if (number == UNKNOWN) number = dimension;
        return dimension >= 0 && number == dimension;
    }

    int check_depth() const {
        if (numbers_[F] == UNKNOWN) return SDST_OK;
        const int64_t depth = numbers_[F] / attributes_.num_heads;
        const bool whole = numbers_[F] % attributes_.num_heads == 0;
        if (whole && is_depth(depth)) return SDST_OK;
        const std::string heads = std::to_string(attributes_.num_heads);
        return bad("value", "F = " + heads + " heads * " + DEPTHS_TEXT, std::to_string(numbers_[F]));
    }

    int check_video(int32_t tensor, SizeIndex width, int64_t bytes) const {
        if (numbers_[T] == UNKNOWN || numbers_[width] == UNKNOWN) return SDST_OK;
        if (numbers_[T] * numbers_[width] * bytes <= MOST_VIDEO_BYTES) return SDST_OK;
        return bad(SIGNATURES[tensor].name, "at most 4 GiB a video",
                   std::to_string(numbers_[T]) + " clips of " + std::to_string(numbers_[width]) + " numbers");
    }

    static std::string describe(const Signature& signature, const std::array<int64_t, SIZES>& numbers) {
        std::string letters, values;
        for (int32_t i = 0; i < signature.rank; ++i) {
            const int64_t number = numbers[signature.sizes[i]];
            const std::string letter = SIZE_NAMES[signature.sizes[i]];
            letters += (i == 0 ? "" : " ") + letter;
            values += (i == 0 ? "" : " ") + (number == UNKNOWN ? letter : std::to_string(number));
        }
        return letters == values ? "[" + letters + "]" : "[" + letters + "] = [" + values + "]";
    }

    Attributes attributes_;
    std::array<int64_t, SIZES> numbers_;
};

/* Bounds are looked at tensor by tensor: TensorRT may widen them, so that those of two tensors need not agree. */
int check_bound(const Attributes& attributes, DataType value_type, int32_t tensor, const nvinfer1::Dims& bound) {
    Sizes sizes(attributes);
    if (const int status = sizes.learn(tensor, bound)) return status;
    return sizes.check_limits(value_type);
}

}  // namespace

bool takes_type(int32_t tensor, DataType type, DataType value_type) {
    switch (tensor) {
        case VALUE: return type == DataType::kHALF || type == DataType::kFLOAT;
        case LENGTH: return type == DataType::kINT32;
        case OUT: return type == value_type;
        default: return type == DataType::kFLOAT;
    }
}

int check_counts(int32_t inputs, int32_t outputs) {
    if (inputs == INPUTS && outputs == OUTPUTS) return SDST_OK;
    return bad("tensors", "4 inputs and 1 output", std::to_string(inputs) + " and " + std::to_string(outputs));
}

int check_types(const DataType* inputs) {
    for (int32_t tensor = 0; tensor < INPUTS; ++tensor) {
        if (const int status = check_type(tensor, inputs[tensor], inputs[VALUE])) return status;
    }
    return SDST_OK;
}

int check_ranks(const nvinfer1::DimsExprs* inputs) {
    for (int32_t tensor = 0; tensor < INPUTS; ++tensor) {
        const Signature& signature = SIGNATURES[tensor];
        if (inputs[tensor].nbDims == signature.rank) continue;
        const std::string dimensions = std::to_string(signature.rank) + " dimensions";
        return bad(signature.name, dimensions, std::to_string(inputs[tensor].nbDims));
    }
    return SDST_OK;
}

int check_profile(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                  const nvinfer1::DynamicPluginTensorDesc& out) {
    Sizes network(attributes), opt(attributes);
    const DataType value_type = inputs[VALUE].desc.type;
    for (int32_t tensor = 0; tensor < INPUTS + OUTPUTS; ++tensor) {
        const nvinfer1::DynamicPluginTensorDesc& dynamic = tensor == OUT ? out : inputs[tensor];
        if (const int status = check_storage(tensor, dynamic.desc, value_type)) return status;
        if (const int status = network.learn(tensor, dynamic.desc.dims, true)) return status;
        if (tensor == OUT) continue;  // TensorRT derives its bounds from those of the inputs
        if (const int status = check_bound(attributes, value_type, tensor, dynamic.min)) return status;
        if (const int status = check_bound(attributes, value_type, tensor, dynamic.max)) return status;
        if (const int status = opt.learn(tensor, dynamic.opt)) return status;
    }
    if (const int status = network.check_limits(value_type)) return status;
    return opt.check_limits(value_type);
}

int check_shapes(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs,
                 const nvinfer1::PluginTensorDesc& out) {
    Sizes sizes(attributes);
    for (int32_t tensor = 0; tensor < INPUTS + OUTPUTS; ++tensor) {
        const nvinfer1::PluginTensorDesc& desc = tensor == OUT ? out : inputs[tensor];
        if (const int status = check_storage(tensor, desc, inputs[VALUE].type)) return status;
        if (const int status = sizes.learn(tensor, desc.dims)) return status;
    }
    return sizes.check_limits(inputs[VALUE].type);
}

}  // namespace sdst
