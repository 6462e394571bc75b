/* Values of the op in 16-byte packs: float, half and bfloat16, unpacked to float and packed from it, on host and
 * device.
 *
 * A pack is held as uint4, because nvcc loads a struct of half2[4] as four 32-bit words even when it is aligned.
 */
#ifndef SDST_VALUE_TYPES_H
#define SDST_VALUE_TYPES_H

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define SDST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SDST_HOST_DEVICE inline
#endif

#ifdef __CUDA_ARCH__
#define SDST_UNROLL _Pragma("unroll")
#define SDST_NO_UNROLL _Pragma("unroll 1")
#else
#define SDST_UNROLL
#define SDST_NO_UNROLL
#endif

namespace sdst {

#ifdef __CUDACC__
using Pack = uint4;
#else
struct alignas(16) Pack {
    uint32_t x, y, z, w;
};
#endif

SDST_HOST_DEVICE float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

SDST_HOST_DEVICE uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct Float {
    static constexpr int COUNT = 4;  // values in a pack

    static SDST_HOST_DEVICE void unpack(const Pack& pack, float (&values)[COUNT]) {
        values[0] = float_of_bits(pack.x);
        values[1] = float_of_bits(pack.y);
        values[2] = float_of_bits(pack.z);
        values[3] = float_of_bits(pack.w);
    }

    static SDST_HOST_DEVICE Pack pack(const float (&values)[COUNT]) {
        return {bits_of_float(values[0]), bits_of_float(values[1]), bits_of_float(values[2]), bits_of_float(values[3])};
    }
};

/* Two 16-bit values a word; `Scalar` converts a word to two floats and back. */
template <class Scalar>
struct Pairs {
    static constexpr int COUNT = 8;

    static SDST_HOST_DEVICE void unpack(const Pack& pack, float (&values)[COUNT]) {
        Scalar::unpack(pack.x, values[0], values[1]);
        Scalar::unpack(pack.y, values[2], values[3]);
        Scalar::unpack(pack.z, values[4], values[5]);
        Scalar::unpack(pack.w, values[6], values[7]);
    }

    static SDST_HOST_DEVICE Pack pack(const float (&values)[COUNT]) {
        return {Scalar::pack(values[0], values[1]), Scalar::pack(values[2], values[3]),
                Scalar::pack(values[4], values[5]), Scalar::pack(values[6], values[7])};
    }
};

/* Round to nearest even, as every IEEE conversion here. */
SDST_HOST_DEVICE uint32_t bfloat16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (bits >> 16) | 0x40u;  // a NaN stays one
    }
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

struct Bfloat16Scalar {
    static SDST_HOST_DEVICE void unpack(uint32_t word, float& low, float& high) {
        low = float_of_bits(word << 16);
        high = float_of_bits(word & 0xffff0000u);
    }

    static SDST_HOST_DEVICE uint32_t pack(float low, float high) {
        return bfloat16_of_float(low) | bfloat16_of_float(high) << 16;
    }
};

inline float float_of_half(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    const uint32_t fraction = half & 0x3ffu;
    if (exponent == 0) {  // zero and subnormals: the fraction counts steps of 2^-24
        const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    if (exponent == 0x1fu) {
        return float_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    return float_of_bits(sign | (exponent + 112u) << 23 | fraction << 13);
}

inline uint32_t half_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u;  // NaN
    }
    if (magnitude >= 0x477ff000u) {
        return sign | 0x7c00u;  // from 65520 on the nearest half is infinity
    }
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the fraction to steps of 2^-24 and rounds it
        return sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u);
    }
    return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13);
}

struct HalfScalar {
    static SDST_HOST_DEVICE void unpack(uint32_t word, float& low, float& high) {
#ifdef __CUDA_ARCH__
        __half2 pair;
        memcpy(&pair, &word, sizeof pair);
        const float2 both = __half22float2(pair);
        low = both.x;
        high = both.y;
#else
        low = float_of_half(word & 0xffffu);
        high = float_of_half(word >> 16);
#endif
    }

    static SDST_HOST_DEVICE uint32_t pack(float low, float high) {
#ifdef __CUDA_ARCH__
        const __half2 pair = __floats2half2_rn(low, high);
        uint32_t word;
        memcpy(&word, &pair, sizeof word);
        return word;
#else
        return half_of_float(low) | half_of_float(high) << 16;
#endif
    }
};

using Half = Pairs<HalfScalar>;
using Bfloat16 = Pairs<Bfloat16Scalar>;

}  // namespace sdst

#endif
