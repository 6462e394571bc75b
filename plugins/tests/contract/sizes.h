/* Sizes of one call: B batch, T clips, M moments, H heads, P points, D depth; F = H * D, E = 3 * 2 * H * P. */
#ifndef SDST_CONTRACT_SIZES_H
#define SDST_CONTRACT_SIZES_H

#include <cstdint>

namespace contract {

struct Sizes {
    int64_t B, T, M;
    int32_t H, P, D;

    int64_t F() const { return int64_t{H} * D; }
    int64_t E() const { return int64_t{6} * H * P; }
};

}  // namespace contract

#endif
