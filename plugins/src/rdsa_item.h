/* One work item of sdst::RDSA: 16 bytes of the output of one moment. Items share nothing, so host and device run the
 * same code.
 *
 * Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D. Contract: plugins/README.md.
 * Coordinates, softmax and sums are float. Every row that is read lies in 0 .. n - 1, also for NaN and infinite inputs;
 * a NaN that is read reaches the output.
 */
#ifndef SDST_RDSA_ITEM_H
#define SDST_RDSA_ITEM_H

#include <cfloat>
#include <cmath>

#include "sdst/rdsa.h"
#include "value_types.h"

namespace sdst {

/* Two neighbouring clips and the share of each in a linear interpolation. */
struct Neighbours {
    int32_t low, high;
    float low_share, high_share;
};

template <class T>
SDST_HOST_DEVICE T clamp(T x, T least, T most) {
    return x < least ? least : x > most ? most : x;  // a NaN passes
}

/* A NaN becomes `least`. */
SDST_HOST_DEVICE float clamp_to_number(float x, float least, float most) { return fminf(fmaxf(x, least), most); }

/* Clips around an end of a moment, which is clamped to the n valid ones. */
SDST_HOST_DEVICE Neighbours neighbours_of_end(float position, int32_t n) {
    const float index = clamp(position, 0.0f, 1.0f) * static_cast<float>(n) - 0.5f;
    const float inside = clamp_to_number(index, 0.0f, static_cast<float>(n - 1));
    const float low = floorf(inside);
    const float share = index != index ? index : inside - low;
    const int32_t row = static_cast<int32_t>(low);
    return {row, row + 1 < n ? row + 1 : row, 1.0f - share, share};
}

/* Clips around a sampled point; one outside the n valid ones has no share. */
SDST_HOST_DEVICE Neighbours neighbours_of_point(float position, int32_t n) {
    const float index = position * static_cast<float>(n) - 0.5f;
    const float end = static_cast<float>(n);
    const float inside = clamp_to_number(index, -1.0f, end);
    const float low = floorf(inside);
    const float share = index != index ? index : inside - low;
    const int32_t row = static_cast<int32_t>(low);
    const float low_share = low < 0.0f || low >= end ? share * 0.0f : 1.0f - share;
    const float high_share = low + 1.0f >= end ? share * 0.0f : share;
    return {clamp(row, 0, n - 1), clamp(row + 1, 0, n - 1), low_share, high_share};
}

/* STEP consecutive floats in one load; `from` is aligned to STEP floats. */
template <int STEP>
SDST_HOST_DEVICE void load_floats(const char* from, float (&values)[STEP]) {
#ifdef __CUDA_ARCH__
    if constexpr (STEP == 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(from));
        values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else if constexpr (STEP == 2) {
        const float2 two = __ldg(reinterpret_cast<const float2*>(from));
        values[0] = two.x, values[1] = two.y;
    } else {
        values[0] = __ldg(reinterpret_cast<const float*>(from));
    }
#else
    memcpy(values, from, sizeof values);
#endif
}

SDST_HOST_DEVICE Pack load_pack(const char* from) {
#ifdef __CUDA_ARCH__
    return __ldg(reinterpret_cast<const Pack*>(from));
#else
    return *reinterpret_cast<const Pack*>(from);
#endif
}

/* STEP offsets and STEP logits of a moment: its three ends, interpolated and added up. */
template <int STEP>
struct Predicted {
    float offset[STEP] = {};
    float logit[STEP] = {};

    /* Adds what one end says: the blend of two clips, whose first offsets lie at `low` and `high`, in bytes. */
    SDST_HOST_DEVICE void add(const char* endpoints, uint32_t low, uint32_t high, uint32_t logits, float share) {
        add_blend(endpoints + low, endpoints + high, share, offset);
        add_blend(endpoints + (low + logits), endpoints + (high + logits), share, logit);
    }

  private:
    static SDST_HOST_DEVICE void add_blend(const char* low, const char* high, float share, float (&sum)[STEP]) {
        float from_low[STEP], from_high[STEP];
        load_floats<STEP>(low, from_low);
        load_floats<STEP>(high, from_high);
        SDST_UNROLL
        for (int i = 0; i < STEP; ++i) sum[i] += from_low[i] * (1.0f - share) + from_high[i] * share;
    }
};

/* Sum of values by softmax weights, with a running maximum, so that any number of points takes the same registers. */
template <int COUNT>
struct SoftmaxSum {
    float highest = -FLT_MAX;  // not infinity: the difference of two infinities is NaN
    float total = 0.0f;
    float values[COUNT] = {};

    SDST_HOST_DEVICE void raise(float logit) {
        const float next = fmaxf(highest, logit);
        const float scale = expf(highest - next);
        highest = next;
        total *= scale;
        SDST_UNROLL
        for (int i = 0; i < COUNT; ++i) values[i] *= scale;
    }

    SDST_HOST_DEVICE void add(float weight, const float (&more)[COUNT]) {
        SDST_UNROLL
        for (int i = 0; i < COUNT; ++i) values[i] += weight * more[i];
    }
};

/* What all points of an item share. Places within one video are counted in 32 bits: a device adds them to the video's
 * address without a register pair for each. */
struct Moment {
    const char* endpoints;  // of the video
    const char* value;      // of the video
    float centre, half_width;
    uint32_t endpoint_bytes, value_bytes;  // in a row: the head's first offset, the item's pack
    int32_t clips;                         // valid ones
};

template <int STEP>
SDST_HOST_DEVICE Predicted<STEP> predict(const sdst_rdsa_problem& problem, const Moment& moment,
                                         const Neighbours (&ends)[3], uint32_t point) {
    const uint32_t logits = static_cast<uint32_t>(problem.heads * problem.points * sizeof(float));
    const uint32_t clip_bytes = static_cast<uint32_t>(problem.endpoints_clip_stride * sizeof(float));
    Predicted<STEP> predicted;
    SDST_UNROLL
    for (int end = 0; end < 3; ++end) {
        const Neighbours clips = ends[end];
        const uint32_t column = moment.endpoint_bytes + point * sizeof(float) + 2 * end * logits;
        predicted.add(moment.endpoints, clips.low * clip_bytes + column, clips.high * clip_bytes + column, logits,
                      clips.high_share);
    }
    return predicted;
}

/* Adds STEP points to the sum. All their loads are issued before the first value is used. */
template <class Value, int STEP, bool ONE_STEP>
SDST_HOST_DEVICE void sample(const sdst_rdsa_problem& problem, const Moment& moment, const Predicted<STEP>& predicted,
                             SoftmaxSum<Value::COUNT>& sum) {
    const uint32_t clip_bytes = static_cast<uint32_t>(problem.value_clip_stride / Value::COUNT * sizeof(Pack));
    float highest = predicted.logit[0];
    SDST_UNROLL
    for (int i = 1; i < STEP; ++i) highest = fmaxf(highest, predicted.logit[i]);
    if constexpr (ONE_STEP) {
        sum.highest = fmaxf(sum.highest, highest);  // there is nothing to scale yet
    } else {
        sum.raise(highest);
    }
    float low_weight[STEP], high_weight[STEP];
    Pack low[STEP], high[STEP];
    SDST_UNROLL
    for (int i = 0; i < STEP; ++i) {
        const Neighbours clips =
            neighbours_of_point(moment.centre + predicted.offset[i] * moment.half_width, moment.clips);
        low[i] = load_pack(moment.value + (clips.low * clip_bytes + moment.value_bytes));
        high[i] = load_pack(moment.value + (clips.high * clip_bytes + moment.value_bytes));
        const float weight = expf(predicted.logit[i] - sum.highest);
        sum.total += weight;
        low_weight[i] = weight * clips.low_share;
        high_weight[i] = weight * clips.high_share;
    }
    SDST_UNROLL
    for (int i = 0; i < STEP; ++i) {
        float values[Value::COUNT];
        Value::unpack(low[i], values);
        sum.add(low_weight[i], values);
        Value::unpack(high[i], values);
        sum.add(high_weight[i], values);
    }
}

/* Computes values `chunk * COUNT` onwards of out[b, m].
 * STEP divides the points and endpoints allow loads of STEP floats; ONE_STEP: there are STEP points in all. */
template <class Value, int STEP, bool ONE_STEP>
SDST_HOST_DEVICE void rdsa_item(const sdst_rdsa_problem& problem, int64_t b, int64_t m, uint32_t chunk) {
    constexpr int COUNT = Value::COUNT;
    const int64_t row = b * problem.moments + m;
    float reference[2];
    load_floats<2>(reinterpret_cast<const char*>(problem.reference + 2 * row), reference);
    Moment moment;
    moment.centre = reference[0];
    moment.half_width = reference[1] * 0.5f;
    moment.clips = clamp(problem.length[b], 1, static_cast<int32_t>(problem.clips));
    moment.endpoints = reinterpret_cast<const char*>(problem.endpoints + b * problem.endpoints_batch_stride);
    moment.endpoint_bytes = chunk * COUNT / problem.depth * problem.points * sizeof(float);
    moment.value = static_cast<const char*>(problem.value) + b * (problem.value_batch_stride / COUNT) * sizeof(Pack);
    moment.value_bytes = chunk * sizeof(Pack);
    const Neighbours ends[3] = {neighbours_of_end(moment.centre - moment.half_width, moment.clips),
                                neighbours_of_end(moment.centre, moment.clips),
                                neighbours_of_end(moment.centre + moment.half_width, moment.clips)};
    SoftmaxSum<COUNT> sum;
    if constexpr (ONE_STEP) {
        sample<Value, STEP, true>(problem, moment, predict<STEP>(problem, moment, ends, 0), sum);
    } else {
        SDST_NO_UNROLL
        for (int32_t point = 0; point < problem.points; point += STEP) {
            sample<Value, STEP, false>(problem, moment, predict<STEP>(problem, moment, ends, point), sum);
        }
    }
    const float scale = 1.0f / sum.total;
    SDST_UNROLL
    for (int i = 0; i < COUNT; ++i) sum.values[i] *= scale;
    const int32_t row_packs = problem.heads * problem.depth / COUNT;
    static_cast<Pack*>(problem.out)[row * row_packs + chunk] = Value::pack(sum.values);
}

}  // namespace sdst

#endif
