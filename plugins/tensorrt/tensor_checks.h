/* What the plugin demands of its tensors. A check returns SDST_OK, or keeps a message for sdst_last_error that names
 * the tensor, what was expected and what came.
 *
 * Sizes: B batch, T clips, M moments, F = num_heads * depth, E = 3 * 2 * num_heads * num_points. Contract:
 * plugins/README.md. Tensors are numbered as TensorRT numbers them, inputs first.
 */
#ifndef SDST_TENSOR_CHECKS_H
#define SDST_TENSOR_CHECKS_H

#include <NvInferRuntime.h>

#include <cstdint>

namespace sdst {

/* num_heads 1 .. MOST_HEADS, num_points 1 .. MOST_POINTS: rdsa_limits.h. */
struct Attributes {
    int32_t num_heads;
    int32_t num_points;
};

enum TensorIndex : int32_t { VALUE, ENDPOINTS, REFERENCE, LENGTH, OUT };
constexpr int32_t INPUTS = 4;
constexpr int32_t OUTPUTS = 1;

/* Whether a tensor may have this type, next to a value of that type. */
bool takes_type(int32_t tensor, nvinfer1::DataType type, nvinfer1::DataType value_type);

int check_counts(int32_t inputs, int32_t outputs);
int check_types(const nvinfer1::DataType* inputs);
int check_ranks(const nvinfer1::DimsExprs* inputs);

/* Ahead of execution: -1 may stand in desc.dims, min and max bound what will come, opt is one shape that will. */
int check_profile(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                  const nvinfer1::DynamicPluginTensorDesc& out);

/* At execution: every dimension is known. */
int check_shapes(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs,
                 const nvinfer1::PluginTensorDesc& out);

}  // namespace sdst

#endif
