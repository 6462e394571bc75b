/* Kernel variants of sdst::RDSA for half values, numbered in the order of the ideas. Variant 2, the library's own, is
 * in plugins/src. These share its types but not its arithmetic, so that both can be tuned alone.
 *
 * Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D. A chunk is 16 bytes of a moment's output.
 * They take what sdst_rdsa takes, with finite inputs; `staged_runs` says what variant 5 needs besides.
 */
#ifndef SDST_DEV_VARIANTS_CUH
#define SDST_DEV_VARIANTS_CUH

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cfloat>
#include <cstdint>

#include "../src/value_types.h"
#include "sdst/rdsa.h"

namespace variants {

using Value = sdst::Half;
constexpr int COUNT = Value::COUNT;
constexpr int THREADS = 128;
constexpr int WARP = 32;
constexpr int TILE = 4;  // moments a block of variants 4 and 5 works on at once

struct Moment {
    int64_t item, b;  // item: b * M + m
    float centre, width;
    int32_t n;  // valid clips
};

/* Where a point of a head looks, and how much it speaks before the softmax. */
struct Place {
    float index, logit;
};

/* The two clips around an index and their shares in a linear interpolation. Both lie in 0 .. n - 1. */
struct Neighbours {
    int32_t low, high;
    float low_share, high_share;
};

inline unsigned blocks_for(int64_t items, int64_t items_a_block) {
    return static_cast<unsigned>((items + items_a_block - 1) / items_a_block);
}

__device__ __forceinline__ Moment load_moment(const sdst_rdsa_problem& problem, int64_t item) {
    const int64_t b = item / problem.moments;
    const float2 reference = __ldg(reinterpret_cast<const float2*>(problem.reference) + item);
    const int32_t n = max(1, min(problem.length[b], static_cast<int32_t>(problem.clips)));
    return {item, b, reference.x, reference.y, n};
}

/* Around an end of the moment: 0 left, 1 centre, 2 right; clamped to the video. */
__device__ __forceinline__ Neighbours clips_of_end(const Moment& moment, int end) {
    const float position = moment.centre + static_cast<float>(end - 1) * (moment.width * 0.5f);
    const float n = static_cast<float>(moment.n);
    const float index = fminf(fmaxf(fminf(fmaxf(position, 0.0f), 1.0f) * n - 0.5f, 0.0f), n - 1.0f);
    const float low = floorf(index);
    const int32_t row = static_cast<int32_t>(low);
    return {row, min(row + 1, moment.n - 1), 1.0f - (index - low), index - low};
}

/* Around a sampled point; a clip outside the video has no share. */
__device__ __forceinline__ Neighbours clips_of_point(float index, int32_t n) {
    const float low = floorf(fminf(fmaxf(index, -1.0f), static_cast<float>(n)));
    const float share = fminf(fmaxf(index - low, 0.0f), 1.0f);
    const int32_t row = static_cast<int32_t>(low);
    return {max(0, min(row, n - 1)), max(0, min(row + 1, n - 1)), row >= 0 && row < n ? 1.0f - share : 0.0f,
            row + 1 < n ? share : 0.0f};
}

__device__ __forceinline__ float index_of(const Moment& moment, float offset) {
    return (moment.centre + offset * (moment.width * 0.5f)) * static_cast<float>(moment.n) - 0.5f;
}

/* Reads the endpoints of one point of one head; `pair` is head * P + point. */
__device__ __forceinline__ Place place_of(const sdst_rdsa_problem& problem, const Moment& moment, int pair) {
    const int HP = problem.heads * problem.points;
    const float* from = problem.endpoints + moment.b * problem.endpoints_batch_stride + pair;
    float offset = 0.0f, logit = 0.0f;
#pragma unroll
    for (int end = 0; end < 3; ++end) {
        const Neighbours clips = clips_of_end(moment, end);
        const float* low = from + clips.low * problem.endpoints_clip_stride + end * 2 * HP;
        const float* high = from + clips.high * problem.endpoints_clip_stride + end * 2 * HP;
        offset += __ldg(low) * clips.low_share + __ldg(high) * clips.high_share;
        logit += __ldg(low + HP) * clips.low_share + __ldg(high + HP) * clips.high_share;
    }
    return {index_of(moment, offset), logit};
}

/* Sum of 16 bytes of value over points whose weights are added one by one. */
struct ChunkSum {
    const char* value;
    int64_t clip_bytes;
    float sums[COUNT] = {};

    __device__ __forceinline__ ChunkSum(const sdst_rdsa_problem& problem, int64_t b, int chunk)
        : value(static_cast<const char*>(problem.value) + (b * problem.value_batch_stride + chunk * COUNT) * 2),
          clip_bytes(problem.value_clip_stride * 2) {}

    __device__ __forceinline__ void add(const Neighbours& clips, float weight) {
        const sdst::Pack low = __ldg(reinterpret_cast<const sdst::Pack*>(value + clips.low * clip_bytes));
        const sdst::Pack high = __ldg(reinterpret_cast<const sdst::Pack*>(value + clips.high * clip_bytes));
        add(low, weight * clips.low_share);
        add(high, weight * clips.high_share);
    }

    __device__ __forceinline__ void store(const sdst_rdsa_problem& problem, int64_t item, int chunk) const {
        const int64_t row = static_cast<int64_t>(problem.heads) * problem.depth / COUNT;
        static_cast<sdst::Pack*>(problem.out)[item * row + chunk] = Value::pack(sums);
    }

  private:
    __device__ __forceinline__ void add(const sdst::Pack& pack, float weight) {
        float values[COUNT];
        Value::unpack(pack, values);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) sums[i] += weight * values[i];
    }
};

/* Variant 1: a thread for every scalar of the output, which finds its own coordinates and softmax.
 * The plain port of the formula: 2-byte loads, and F / H threads read the same endpoints. */
__global__ void __launch_bounds__(THREADS) scalar_kernel(const __grid_constant__ sdst_rdsa_problem problem) {
    const int64_t F = static_cast<int64_t>(problem.heads) * problem.depth;
    const int64_t scalar = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (scalar >= problem.batch * problem.moments * F) return;
    const Moment moment = load_moment(problem, scalar / F);
    const int column = static_cast<int>(scalar % F);
    const __half* value = static_cast<const __half*>(problem.value) + moment.b * problem.value_batch_stride + column;
    const int first = column / problem.depth * problem.points;
    float highest = -FLT_MAX, total = 0.0f, sum = 0.0f;
    for (int point = 0; point < problem.points; ++point) {
        const Place place = place_of(problem, moment, first + point);
        const Neighbours clips = clips_of_point(place.index, moment.n);
        const float before = highest;
        highest = fmaxf(before, place.logit);
        const float scale = expf(before - highest), weight = expf(place.logit - highest);
        total = total * scale + weight;
        sum = sum * scale + weight * (clips.low_share * __half2float(value[clips.low * problem.value_clip_stride]) +
                                      clips.high_share * __half2float(value[clips.high * problem.value_clip_stride]));
    }
    static_cast<__half*>(problem.out)[scalar] = __float2half_rn(sum / total);
}

inline void launch_scalar(const sdst_rdsa_problem& problem, cudaStream_t stream) {
    const int64_t scalars = problem.batch * problem.moments * problem.heads * problem.depth;
    scalar_kernel<<<blocks_for(scalars, THREADS), THREADS, 0, stream>>>(problem);
}

/* Variant 3: a warp for the heads of a moment that have 32 points together; each lane gathers and places one of them.
 * Endpoints come once, in 128-byte loads; places and weights reach the lanes that sum 16 bytes each by shuffles. */
__global__ void __launch_bounds__(THREADS) warp_kernel(const __grid_constant__ sdst_rdsa_problem problem) {
    constexpr unsigned ALL = 0xffffffffu;
    const int P = problem.points, lane = threadIdx.x % WARP;
    const int most_heads = WARP / P, groups = (problem.heads + most_heads - 1) / most_heads;
    const int64_t warp = static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (warp >= problem.batch * problem.moments * groups) return;
    const Moment moment = load_moment(problem, warp / groups);
    const int first_head = static_cast<int>(warp % groups) * most_heads;
    const int heads = min(most_heads, problem.heads - first_head);

    const int pair = min(lane, heads * P - 1);  // lanes to spare repeat the last point
    const int of_head = pair / P * P;
    const Place place = place_of(problem, moment, first_head * P + pair);
    float highest = -FLT_MAX, total = 0.0f;
    for (int p = 0; p < P; ++p) highest = fmaxf(highest, __shfl_sync(ALL, place.logit, of_head + p));
    float weight = expf(place.logit - highest);
    for (int p = 0; p < P; ++p) total += __shfl_sync(ALL, weight, of_head + p);
    weight /= total;

    const int chunks_a_head = problem.depth / COUNT, chunks = heads * chunks_a_head;
    for (int base = 0; base < chunks; base += WARP) {
        const int chunk = min(base + lane, chunks - 1);
        const int from = chunk / chunks_a_head * P, column = first_head * chunks_a_head + chunk;
        ChunkSum sum(problem, moment.b, column);
#pragma unroll 4
        for (int p = 0; p < P; ++p) {
            const float index = __shfl_sync(ALL, place.index, from + p);
            sum.add(clips_of_point(index, moment.n), __shfl_sync(ALL, weight, from + p));
        }
        if (base + lane < chunks) sum.store(problem, moment.item, column);
    }
}

inline void launch_warp(const sdst_rdsa_problem& problem, cudaStream_t stream) {
    const int heads = WARP / problem.points;
    const int64_t warps = problem.batch * problem.moments * ((problem.heads + heads - 1) / heads);
    warp_kernel<<<blocks_for(warps, THREADS / WARP), THREADS, 0, stream>>>(problem);
}

/* The softmax over the places of a head, and the sum. */
__device__ __forceinline__ void sample_chunk(const sdst_rdsa_problem& problem, const Moment& moment, int chunk,
                                             const Place* places) {
    const int P = problem.points;
    float highest = -FLT_MAX, total = 0.0f;
    for (int p = 0; p < P; ++p) highest = fmaxf(highest, places[p].logit);
    for (int p = 0; p < P; ++p) total += expf(places[p].logit - highest);
    const float scale = 1.0f / total;
    ChunkSum sum(problem, moment.b, chunk);
#pragma unroll 4
    for (int p = 0; p < P; ++p) {
        const Place place = places[p];
        sum.add(clips_of_point(place.index, moment.n), expf(place.logit - highest) * scale);
    }
    sum.store(problem, moment.item, chunk);
}

/* Variant 4: a block for TILE moments; a thread places a point, and the places wait for all in shared memory.
 * Any number of points and heads, no lane to spare, at the price of one barrier. */
__global__ void __launch_bounds__(THREADS) block_kernel(const __grid_constant__ sdst_rdsa_problem problem) {
    extern __shared__ Place places[];  // TILE HP
    const int HP = problem.heads * problem.points, chunks = problem.heads * problem.depth / COUNT;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * TILE;
    const int moments = static_cast<int>(min(static_cast<int64_t>(TILE), problem.batch * problem.moments - first));
    for (int i = threadIdx.x; i < moments * HP; i += THREADS) {
        places[i] = place_of(problem, load_moment(problem, first + i / HP), i % HP);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < moments * chunks; i += THREADS) {
        const int chunk = i % chunks, head = chunk * COUNT / problem.depth;
        const Moment moment = load_moment(problem, first + i / chunks);
        sample_chunk(problem, moment, chunk, places + i / chunks * HP + head * problem.points);
    }
}

inline void launch_block(const sdst_rdsa_problem& problem, cudaStream_t stream) {
    const size_t shared = sizeof(Place) * TILE * problem.heads * problem.points;
    block_kernel<<<blocks_for(problem.batch * problem.moments, TILE), THREADS, shared, stream>>>(problem);
}

/* Shared memory of variant 5: moments are there two tiles, endpoints one tile ahead of the tile that is summed. */
struct Stages {
    float2* reference;  // 3 TILE
    int32_t* length;    // 3 TILE
    Place* places;      // TILE HP
    float* rows;        // 2 TILE 6 2HP

    static size_t bytes(int HP) {
        return 3 * TILE * (sizeof(float2) + sizeof(int32_t)) + TILE * HP * (sizeof(Place) + 24 * sizeof(float));
    }

    __device__ __forceinline__ Stages(char* shared, int HP)
        : reference(reinterpret_cast<float2*>(shared)),
          length(reinterpret_cast<int32_t*>(reference + 3 * TILE)),
          places(reinterpret_cast<Place*>(length + 3 * TILE)),
          rows(reinterpret_cast<float*>(places + TILE * HP)) {}

    __device__ __forceinline__ Moment moment(const sdst_rdsa_problem& problem, int64_t item, int at) const {
        const int32_t n = max(1, min(length[at], static_cast<int32_t>(problem.clips)));
        return {item, item / problem.moments, reference[at].x, reference[at].y, n};
    }
};

__device__ __forceinline__ void fetch_moments(const sdst_rdsa_problem& problem, const Stages& stages, int64_t first,
                                              int slot) {
    const int64_t item = first + threadIdx.x;
    if (threadIdx.x >= TILE || item >= problem.batch * problem.moments) return;
    const int at = slot * TILE + threadIdx.x;
    __pipeline_memcpy_async(stages.reference + at, problem.reference + 2 * item, sizeof(float2));
    __pipeline_memcpy_async(stages.length + at, problem.length + item / problem.moments, sizeof(int32_t));
}

__device__ __forceinline__ void fetch_rows(const sdst_rdsa_problem& problem, const Stages& stages, int64_t first,
                                           int slot, float* rows) {
    constexpr int PIECE = 4;  // floats copied at once
    const int row_floats = 2 * problem.heads * problem.points, pieces = row_floats / PIECE;
    const int64_t moments = min(static_cast<int64_t>(TILE), problem.batch * problem.moments - first);
    for (int i = threadIdx.x; i < moments * 6 * pieces; i += THREADS) {
        const int piece = i % pieces * PIECE, row = i / pieces % 6, at = i / pieces / 6;
        const Moment moment = stages.moment(problem, first + at, slot * TILE + at);
        const Neighbours clips = clips_of_end(moment, row / 2);
        const float* from = problem.endpoints + moment.b * problem.endpoints_batch_stride +
                            (row % 2 ? clips.high : clips.low) * problem.endpoints_clip_stride + row / 2 * row_floats +
                            piece;
        __pipeline_memcpy_async(rows + (at * 6 + row) * row_floats + piece, from, PIECE * sizeof(float));
    }
}

__device__ __forceinline__ Place place_in_rows(const Moment& moment, const float* rows, int HP, int pair) {
    float offset = 0.0f, logit = 0.0f;
#pragma unroll
    for (int end = 0; end < 3; ++end) {
        const Neighbours clips = clips_of_end(moment, end);
        const float *low = rows + 2 * end * 2 * HP + pair, *high = low + 2 * HP;
        offset += low[0] * clips.low_share + high[0] * clips.high_share;
        logit += low[HP] * clips.low_share + high[HP] * clips.high_share;
    }
    return {index_of(moment, offset), logit};
}

/* Variant 5: 4 with blocks that stay and walk over tiles; endpoints of the next tile are copied into shared memory
 * (cp.async) while values of this one are summed, so that its two dependent reads hide behind the sum. */
__global__ void __launch_bounds__(THREADS) staged_kernel(const __grid_constant__ sdst_rdsa_problem problem) {
    extern __shared__ __align__(16) char shared[];
    const int HP = problem.heads * problem.points, chunks = problem.heads * problem.depth / COUNT;
    const int tile_rows = TILE * 6 * 2 * HP;
    const Stages stages(shared, HP);
    const int64_t items = problem.batch * problem.moments, stride = static_cast<int64_t>(gridDim.x) * TILE;
    int64_t first = static_cast<int64_t>(blockIdx.x) * TILE;
    fetch_moments(problem, stages, first, 0);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    fetch_moments(problem, stages, first + stride, 1);
    fetch_rows(problem, stages, first, 0, stages.rows);
    __pipeline_commit();
    for (int turn = 0; first < items; ++turn, first += stride) {
        const int slot = turn % 3;
        const float* rows = stages.rows + turn % 2 * tile_rows;
        const int moments = static_cast<int>(min(static_cast<int64_t>(TILE), items - first));
        __pipeline_wait_prior(0);
        __syncthreads();  // this tile's rows and the next tile's moments are there; nobody reads the tile before
        fetch_moments(problem, stages, first + 2 * stride, (turn + 2) % 3);
        fetch_rows(problem, stages, first + stride, (turn + 1) % 3, stages.rows + (turn + 1) % 2 * tile_rows);
        __pipeline_commit();
        for (int i = threadIdx.x; i < moments * HP; i += THREADS) {
            const Moment moment = stages.moment(problem, first + i / HP, slot * TILE + i / HP);
            stages.places[i] = place_in_rows(moment, rows + i / HP * 12 * HP, HP, i % HP);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < moments * chunks; i += THREADS) {
            const int chunk = i % chunks, at = i / chunks, head = chunk * COUNT / problem.depth;
            const Moment moment = stages.moment(problem, first + at, slot * TILE + at);
            sample_chunk(problem, moment, chunk, stages.places + at * HP + head * problem.points);
        }
    }
}

/* cp.async copies 16 bytes of aligned rows; two tiles of them must fit in the shared memory that needs no opt-in. */
inline bool staged_runs(const sdst_rdsa_problem& problem) {
    const int HP = problem.heads * problem.points;
    return HP % 2 == 0 && problem.endpoints_clip_stride % 4 == 0 && problem.endpoints_batch_stride % 4 == 0 &&
           Stages::bytes(HP) <= 48 * 1024;
}

inline void launch_staged(const sdst_rdsa_problem& problem, cudaStream_t stream) {
    const size_t shared = Stages::bytes(problem.heads * problem.points);
    int device = 0, processors = 0, blocks = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, staged_kernel, THREADS, shared);
    const unsigned tiles = blocks_for(problem.batch * problem.moments, TILE);
    staged_kernel<<<std::min(tiles, static_cast<unsigned>(processors * blocks)), THREADS, shared, stream>>>(problem);
}

}  // namespace variants

#endif
