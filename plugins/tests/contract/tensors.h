/* Descriptions of the op's tensors: value B T F, endpoints B T E, reference B M 2, length B, out B M F. */
#ifndef SDST_CONTRACT_TENSORS_H
#define SDST_CONTRACT_TENSORS_H

#include <NvInferRuntime.h>

#include <array>

#include "sizes.h"

namespace contract {

constexpr int32_t INPUTS = 4;
constexpr int32_t TENSORS = 5;  // the output is the last
constexpr std::array<const char*, TENSORS> NAMES = {"value", "endpoints", "reference", "length", "out"};

using AllDims = std::array<nvinfer1::Dims, TENSORS>;
using AllTypes = std::array<nvinfer1::DataType, TENSORS>;
using AllDescs = std::array<nvinfer1::PluginTensorDesc, TENSORS>;
using AllDynamicDescs = std::array<nvinfer1::DynamicPluginTensorDesc, TENSORS>;

AllDims dims_of(const Sizes& sizes);
AllTypes types_of(nvinfer1::DataType value_type);
AllDescs describe(const AllDims& dims, const AllTypes& types);

/* Where min and max differ the network's dimension is -1. */
AllDynamicDescs describe(const AllDims& min, const AllDims& opt, const AllDims& max, const AllTypes& types);

}  // namespace contract

#endif
