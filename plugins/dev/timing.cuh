/* Time on the device, in microseconds: events on a stream whose work is queued before it starts. */
#ifndef SDST_DEV_TIMING_CUH
#define SDST_DEV_TIMING_CUH

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define CHECK_CUDA(call)                                                                         \
    do {                                                                                         \
        const cudaError_t error_ = (call);                                                       \
        if (error_ != cudaSuccess) {                                                             \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_)); \
            std::exit(1);                                                                        \
        }                                                                                        \
    } while (0)

namespace timing {

using Work = std::function<void(cudaStream_t)>;

__global__ void empty_kernel() {}

/* Holds the stream while the host queues what is to be timed; else the host's launches would be timed. */
__global__ void wait_kernel(long long cycles) {
    const long long start = clock64();
    while (clock64() - start < cycles) {
    }
}

class Timer {
  public:
    Timer() {
        int device = 0, l2_bytes = 0;
        CHECK_CUDA(cudaGetDevice(&device));
        CHECK_CUDA(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device));
        flush_bytes_ = std::max<size_t>(4 * static_cast<size_t>(l2_bytes), 64u << 20);
        CHECK_CUDA(cudaMalloc(&flush_, flush_bytes_));
        CHECK_CUDA(cudaStreamCreate(&stream_));
        CHECK_CUDA(cudaEventCreate(&start_));
        CHECK_CUDA(cudaEventCreate(&stop_));
    }
    ~Timer() {
        cudaEventDestroy(start_);
        cudaEventDestroy(stop_);
        cudaStreamDestroy(stream_);
        cudaFree(flush_);
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

    /* One call after everything in L2 was overwritten; the events' own time is in it. */
    double cold_us(const Work& work) {
        return median(50, [&] {
            CHECK_CUDA(cudaMemsetAsync(flush_, 0, flush_bytes_, stream_));
            return span(work, 1);
        });
    }

    /* A call among many that follow one another. */
    double warm_us(const Work& work) {
        constexpr int CALLS = 50;
        return median(20, [&] {
            wait_kernel<<<1, 1, 0, stream_>>>(1'000'000);
            return span(work, CALLS) / CALLS;
        });
    }

    /* A replay of a graph of one call, among many replays. */
    double graph_us(const Work& work) {
        cudaGraph_t graph;
        cudaGraphExec_t replay;
        CHECK_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
        work(stream_);
        CHECK_CUDA(cudaStreamEndCapture(stream_, &graph));
        CHECK_CUDA(cudaGraphInstantiate(&replay, graph, 0));
        const double us = warm_us([&](cudaStream_t stream) { CHECK_CUDA(cudaGraphLaunch(replay, stream)); });
        CHECK_CUDA(cudaGraphExecDestroy(replay));
        CHECK_CUDA(cudaGraphDestroy(graph));
        return us;
    }

    /* Bytes read and written in a microsecond by a large copy on the device. */
    double copy_bytes_per_us() {
        constexpr size_t BYTES = size_t{1} << 30;
        void* both = nullptr;
        CHECK_CUDA(cudaMalloc(&both, 2 * BYTES));
        char* target = static_cast<char*>(both) + BYTES;
        const Work copy = [&](cudaStream_t stream) {
            CHECK_CUDA(cudaMemcpyAsync(target, both, BYTES, cudaMemcpyDeviceToDevice, stream));
        };
        const double us = median(10, [&] { return span(copy, 1); });
        CHECK_CUDA(cudaFree(both));
        return 2.0 * BYTES / us;
    }

  private:
    void* flush_ = nullptr;
    size_t flush_bytes_ = 0;
    cudaStream_t stream_ = nullptr;
    cudaEvent_t start_ = nullptr, stop_ = nullptr;

    double span(const Work& work, int calls) {
        float ms = 0;
        CHECK_CUDA(cudaEventRecord(start_, stream_));
        for (int i = 0; i < calls; ++i) work(stream_);
        CHECK_CUDA(cudaEventRecord(stop_, stream_));
        CHECK_CUDA(cudaEventSynchronize(stop_));
        CHECK_CUDA(cudaGetLastError());
        CHECK_CUDA(cudaEventElapsedTime(&ms, start_, stop_));
        return 1e3 * ms;
    }

    static double median(int samples, const std::function<double()>& sample) {
        std::vector<double> us;
        for (int i = 0; i < samples + 3; ++i) {
            const double one = sample();
            if (i >= 3) us.push_back(one);  // the first ones load code and raise clocks
        }
        std::sort(us.begin(), us.end());
        return us[us.size() / 2];
    }
};

}  // namespace timing

#endif
