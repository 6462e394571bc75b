/* Random inputs of the op and what it means, in double. Knows neither TensorRT nor the library.
 *
 * Shapes: value B T F, endpoints B T E (E = 3 * 2 * H * P), reference B M 2, length B, out B M F.
 * Contract: plugins/README.md.
 */
#ifndef SDST_CONTRACT_PROBLEM_H
#define SDST_CONTRACT_PROBLEM_H

#include <cstdint>
#include <vector>

#include "sizes.h"

namespace contract {

/* Clips at and beyond a length hold NaN. References lie inside, on and beyond the video. */
struct Problem {
    Sizes sizes;
    std::vector<float> value, endpoints, reference;
    std::vector<int32_t> length;
};

/* Lengths are 1, T and others between; the same numbers for the same seed. */
Problem make_problem(const Sizes& sizes, uint32_t seed);

/* Linear interpolation as a sum over all valid clips of tent weights: no floor, no neighbour, no gather. */
std::vector<double> oracle(const Problem& problem);

uint16_t half_from_float(float number);
float float_from_half(uint16_t bits);

}  // namespace contract

#endif
