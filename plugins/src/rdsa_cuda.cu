/* The op on device pointers: one launch, a thread for every 16 bytes of output. No allocation, no synchronisation.
 *
 * A thread reads the 6 pieces of endpoints that its head needs by itself, although the threads of one head read the
 * same: they hit one cache line together, and nothing has to be exchanged or waited for.
 */
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

#include "error.h"
#include "rdsa_check.h"
#include "rdsa_item.h"

/* ptxas keeps every kernel under 64 registers by itself, except for Turing. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define SDST_REGISTERS __maxnreg__(63)
#else
#define SDST_REGISTERS
#endif

namespace {

constexpr int MOST_THREADS = 128;
constexpr int64_t MOST_GRID_Y = 65535;
/* Below this many threads in all a launch is latency-bound: small blocks spread it over more multiprocessors. */
constexpr int64_t SMALL_PROBLEM = 1 << 17;
constexpr int SMALL_BLOCK = 32;

/* block: x chunks of one moment, y moments; grid: x moments, y videos, z what a block's x leaves of the chunks.
 * The video is the same for a whole block, so that its addresses need no registers of a thread. */
template <class Value, int STEP, bool ONE_STEP>
__global__ void SDST_REGISTERS rdsa_kernel(const __grid_constant__ sdst_rdsa_problem problem) {
    const int64_t m = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    const uint32_t chunk = blockIdx.z * blockDim.x + threadIdx.x;
    if (m >= problem.moments || chunk >= static_cast<uint32_t>(problem.heads * problem.depth / Value::COUNT)) return;
    SDST_NO_UNROLL
    for (int64_t b = blockIdx.y; b < problem.batch; b += gridDim.y) {
        sdst::rdsa_item<Value, STEP, ONE_STEP>(problem, b, m, chunk);
    }
}

template <class Value>
const void* kernel_of(int step) {
    switch (step) {
        case 4: return reinterpret_cast<const void*>(&rdsa_kernel<Value, 4, true>);
        case 2: return reinterpret_cast<const void*>(&rdsa_kernel<Value, 2, false>);
        default: return reinterpret_cast<const void*>(&rdsa_kernel<Value, 1, false>);
    }
}

const void* kernel_of(int32_t type, int step) {
    switch (type) {
        case SDST_HALF: return kernel_of<sdst::Half>(step);
        case SDST_BFLOAT16: return kernel_of<sdst::Bfloat16>(step);
        default: return kernel_of<sdst::Float>(step);
    }
}

}  // namespace

int sdst_rdsa(const sdst_rdsa_problem* problem, void* stream) {
    if (const int status = sdst::check(problem)) return status;
    if (problem->batch == 0 || problem->moments == 0) return SDST_OK;
    const int64_t chunks = static_cast<int64_t>(problem->heads) * problem->depth / sdst::pack_count(problem->type);
    const int64_t work = problem->batch * problem->moments * chunks;
    const int64_t threads = work < SMALL_PROBLEM ? SMALL_BLOCK : MOST_THREADS;
    dim3 block, grid;
    block.x = static_cast<unsigned>(std::min<int64_t>(chunks, MOST_THREADS));
    block.y = static_cast<unsigned>(std::clamp<int64_t>(threads / block.x, 1, problem->moments));
    grid.x = static_cast<unsigned>((problem->moments + block.y - 1) / block.y);
    grid.y = static_cast<unsigned>(std::min(problem->batch, MOST_GRID_Y));
    grid.z = static_cast<unsigned>((chunks + block.x - 1) / block.x);
    void* arguments[] = {const_cast<sdst_rdsa_problem*>(problem)};
    const void* kernel = kernel_of(problem->type, sdst::point_step(*problem));
    const cudaError_t error = cudaLaunchKernel(kernel, grid, block, arguments, 0, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) {
        char message[256];
        std::snprintf(message, sizeof message, "rdsa: the launch failed: %s", cudaGetErrorString(error));
        return sdst::fail(SDST_CUDA_ERROR, message);
    }
    return SDST_OK;
}
