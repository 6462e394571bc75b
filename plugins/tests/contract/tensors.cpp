#include "tensors.h"

namespace contract {

using nvinfer1::DataType;

AllDims dims_of(const Sizes& s) {
    return {{{3, {s.B, s.T, s.F()}}, {3, {s.B, s.T, s.E()}}, {3, {s.B, s.M, 2}}, {1, {s.B}}, {3, {s.B, s.M, s.F()}}}};
}

AllTypes types_of(DataType value_type) {
    return {value_type, DataType::kFLOAT, DataType::kFLOAT, DataType::kINT32, value_type};
}

AllDescs describe(const AllDims& dims, const AllTypes& types) {
    AllDescs descs;
    for (int32_t i = 0; i < TENSORS; ++i) descs[i] = {dims[i], types[i], nvinfer1::TensorFormat::kLINEAR, -1.0f};
    return descs;
}

AllDynamicDescs describe(const AllDims& min, const AllDims& opt, const AllDims& max, const AllTypes& types) {
    AllDynamicDescs dynamic;
    const AllDescs descs = describe(opt, types);
    for (int32_t i = 0; i < TENSORS; ++i) {
        dynamic[i] = {descs[i], min[i], max[i], opt[i]};
        for (int32_t j = 0; j < opt[i].nbDims; ++j) {
            if (min[i].d[j] != max[i].d[j]) dynamic[i].desc.dims.d[j] = -1;
        }
    }
    return dynamic;
}

}  // namespace contract
