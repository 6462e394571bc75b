/* As much of the CUDA runtime as plugins/examples/ground.cpp calls, in host memory: the mock of libnvinfer runs there.
 * New memory is filled with NaN, so that an output that nobody writes shows. */
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

extern "C" {
cudaError_t cudaMalloc(void** memory, size_t bytes) {
    const size_t blocks = (bytes + 255) / 256;
    *memory = std::aligned_alloc(256, blocks * 256);
    if (*memory == nullptr) return cudaErrorMemoryAllocation;
    std::memset(*memory, 0xFF, blocks * 256);
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    *stream = nullptr;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the double"; }
}
