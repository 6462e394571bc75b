/* Kernel variants of sdst::RDSA: checked against a reference in double, then timed, in one program.
 *
 *   nvcc -O3 -std=c++17 -arch=native -I plugins/include plugins/dev/rdsa.cu -o rdsa_dev
 *   ./rdsa_dev            check and time
 *   ./rdsa_dev --check    check only, on small shapes: for compute-sanitizer
 *
 * Exit code: 0 all variants agree with the reference, 1 one does not or CUDA failed, 2 there is no GPU.
 * Times are in microseconds. cold: L2 overwritten before every call; warm: calls that follow one another; graph:
 * replays of a CUDA graph of one call. The floor is the time of a large copy on the device that moves as many bytes as
 * these inputs force any kernel to; the fraction is floor / cold.
 */
#include <cstdio>
#include <cstring>
#include <vector>

#include "../src/error.cpp"
#include "../src/rdsa_check.cpp"
#include "../src/rdsa_cuda.cu"  // variant 2 is the launch that ships
#include "reference.h"
#include "timing.cuh"
#include "variants.cuh"

namespace {

using reference::Inputs;
using reference::Shape;

struct Variant {
    int number;
    const char* name;
    void (*launch)(const sdst_rdsa_problem&, cudaStream_t);
    bool (*runs)(const sdst_rdsa_problem&);
};

void launch_library(const sdst_rdsa_problem& problem, cudaStream_t stream) {
    if (sdst_rdsa(&problem, stream) != SDST_OK) {
        std::fprintf(stderr, "%s\n", sdst_last_error());
        std::exit(1);
    }
}

bool always(const sdst_rdsa_problem&) { return true; }

/* Variant 2: a thread for 16 bytes of output; the threads of a head read the same endpoints, in one line of cache.
 * Eight times fewer threads and loads than variant 1, nothing to exchange, no barrier. It is the library's kernel. */
constexpr Variant LIBRARY = {2, "thread a chunk (library)", launch_library, always};

constexpr Variant VARIANTS[] = {
    {1, "thread a scalar", variants::launch_scalar, always},
    LIBRARY,
    {3, "warp a moment, shuffles", variants::launch_warp, always},
    {4, "block of moments, shared", variants::launch_block, always},
    {5, "staged with cp.async", variants::launch_staged, variants::staged_runs},
};

constexpr Shape CHECKED[] = {
    {1, 1, 1, 1, 1, 16, false},     {3, 9, 5, 2, 4, 16, false},   {4, 17, 7, 3, 5, 16, false},
    {2, 10, 4, 2, 2, 64, false},    {2, 24, 30, 8, 4, 32, false}, {8, 75, 30, 8, 4, 32, false},
    {2, 60, 33, 16, 8, 32, false},  {2, 40, 9, 5, 16, 32, false}, {2, 31, 50, 1, 7, 64, false},
    {300, 12, 11, 8, 4, 32, false},
};

constexpr Shape TIMED[] = {
    {1, 75, 10, 8, 4, 32, true},   {1, 75, 30, 8, 4, 32, true},      {1, 1024, 100, 8, 4, 32, true},
    {8, 75, 30, 8, 4, 32, true},   {32, 75, 30, 8, 4, 32, true},     {32, 1024, 100, 8, 4, 32, true},
    {256, 75, 30, 8, 4, 32, true}, {256, 1024, 100, 8, 4, 32, true},
};

template <class T>
class DeviceArray {
  public:
    explicit DeviceArray(size_t count) : count_(count) { CHECK_CUDA(cudaMalloc(&data_, count * sizeof(T))); }
    explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) {
        CHECK_CUDA(cudaMemcpy(data_, from.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    T* data() const { return data_; }
    void fill(int byte) { CHECK_CUDA(cudaMemset(data_, byte, count_ * sizeof(T))); }
    std::vector<T> to_host() const {
        std::vector<T> host(count_);
        CHECK_CUDA(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return host;
    }

  private:
    T* data_ = nullptr;
    size_t count_;
};

/* Values as the kernels hold them: `Storage` is uint16_t or float. */
template <class Storage, class Convert>
std::vector<Storage> stored(const std::vector<float>& values, Convert convert) {
    std::vector<Storage> result;
    result.reserve(values.size());
    for (const float value : values) result.push_back(static_cast<Storage>(convert(value)));
    return result;
}

std::vector<uint16_t> halves(const std::vector<float>& values) { return stored<uint16_t>(values, sdst::half_of_float); }

template <class Storage>
struct OnDevice {
    DeviceArray<Storage> value;
    DeviceArray<float> endpoints, moments;
    DeviceArray<int32_t> length;
    DeviceArray<Storage> out;
    sdst_rdsa_problem problem{};

    OnDevice(const Inputs& x, const std::vector<Storage>& values, sdst_type type)
        : value(values),
          endpoints(x.endpoints),
          moments(x.moments),
          length(x.length),
          out(x.shape.B * x.shape.M * x.shape.H * x.shape.D) {
        const Shape& s = x.shape;
        const int64_t F = static_cast<int64_t>(s.H) * s.D, E = 6L * s.H * s.P;
        problem = {value.data(),
                   endpoints.data(),
                   moments.data(),
                   length.data(),
                   out.data(),
                   s.B,
                   s.T,
                   s.M,
                   s.H,
                   s.P,
                   s.D,
                   type,
                   s.T * F,
                   F,
                   s.T * E,
                   E};
    }
};

/* Runs a variant and returns its largest error in units of what is allowed: the rounding of the result, 1 in `steps`,
 * and what float32 indices err (tests/rdsa_cases.py). `to_float` reads a stored value. */
template <class Storage, class ToFloat>
double relative_error(const Variant& variant, OnDevice<Storage>& device, const std::vector<double>& expected,
                      double steps, ToFloat to_float) {
    device.out.fill(0xff);  // NaN, lest a variant pass with the result of another
    variant.launch(device.problem, nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
    const std::vector<Storage> out = device.out.to_host();
    const double indices = 1e-5 * std::max(1.0, static_cast<double>(device.problem.clips) / 24.0);
    double worst = 0.0;
    for (size_t i = 0; i < out.size(); ++i) {
        const double error = std::abs(to_float(out[i]) - expected[i]) / (indices + std::abs(expected[i]) / steps);
        if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
    }
    return worst;
}

bool print_error(int number, const char* type, double error) {
    std::printf("  %d%s %.2f%s", number, type, error, error <= 1.0 ? "" : " WRONG");
    return error <= 1.0;
}

/* All variants in half, and the library's kernel in its other types. */
bool check(const Shape& shape) {
    const Inputs inputs = reference::make_inputs(shape);
    const std::vector<double> expected = reference::rdsa(inputs);
    const std::vector<uint16_t> bfloats = stored<uint16_t>(inputs.value, sdst::bfloat16_of_float);
    OnDevice<uint16_t> half(inputs, halves(inputs.value), SDST_HALF), bfloat16(inputs, bfloats, SDST_BFLOAT16);
    OnDevice<float> single(inputs, inputs.value, SDST_FLOAT);
    bool well = true;
    std::printf("check B %ld T %ld M %ld H %d P %d D %d, error / allowed:", long(shape.B), long(shape.T), long(shape.M),
                shape.H, shape.P, shape.D);
    for (const Variant& variant : VARIANTS) {
        if (!variant.runs(half.problem)) continue;
        const double error = relative_error(variant, half, expected, 0x1p11, sdst::float_of_half);
        well = print_error(variant.number, "", error) && well;
    }
    const auto of_bfloat16 = [](uint32_t bits) { return sdst::float_of_bits(bits << 16); };
    const auto of_float = [](float value) { return value; };
    well = print_error(2, " bf16", relative_error(LIBRARY, bfloat16, expected, 0x1p8, of_bfloat16)) && well;
    well = print_error(2, " float", relative_error(LIBRARY, single, expected, 0x1p20, of_float)) && well;
    std::printf("\n");
    return well;
}

void time_variants(timing::Timer& timer, const Shape& shape, double copy_bytes_per_us) {
    const Inputs inputs = reference::make_inputs(shape);
    const int64_t bytes = reference::Traffic(inputs).bytes();
    const double floor_us = static_cast<double>(bytes) / copy_bytes_per_us;
    OnDevice<uint16_t> device(inputs, halves(inputs.value), SDST_HALF);
    std::printf("\nB %ld T %ld M %ld H %d P %d D %d: %ld bytes, floor %.2f us\n", long(shape.B), long(shape.T),
                long(shape.M), shape.H, shape.P, shape.D, long(bytes), floor_us);
    std::printf("  %-28s %9s %9s %9s %9s\n", "variant", "cold", "warm", "graph", "fraction");
    const auto row = [&](int number, const char* name, const timing::Work& work, bool moves_bytes) {
        const double cold = timer.cold_us(work), warm = timer.warm_us(work), graph = timer.graph_us(work);
        std::printf("  %d %-26s %9.2f %9.2f %9.2f", number, name, cold, warm, graph);
        if (moves_bytes) std::printf(" %9.2f", floor_us / cold);
        std::printf("\n");
    };
    row(0, "empty kernel", [](cudaStream_t stream) { timing::empty_kernel<<<1, 32, 0, stream>>>(); }, false);
    for (const Variant& variant : VARIANTS) {
        const timing::Work work = [&](cudaStream_t stream) { variant.launch(device.problem, stream); };
        if (variant.runs(device.problem)) row(variant.number, variant.name, work, true);
    }
}

}  // namespace

int main(int argc, char** argv) {
    const bool only_check = argc == 2 && std::strcmp(argv[1], "--check") == 0;
    if (argc > 1 && !only_check) {
        std::fprintf(stderr, "rdsa_dev: expected nothing or --check, got %s\n", argv[1]);
        return 1;
    }
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::fprintf(stderr, "rdsa_dev: no CUDA device here; run it on a machine with a GPU\n");
        return 2;
    }
    bool well = true;
    for (const Shape& shape : CHECKED) well = check(shape) && well;
    if (only_check || !well) return well ? 0 : 1;

    cudaDeviceProp properties;
    CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
    timing::Timer timer;
    const double copy_bytes_per_us = timer.copy_bytes_per_us();
    std::printf("\n%s, sm_%d%d, copy %.0f GB/s; times in us\n", properties.name, properties.major, properties.minor,
                copy_bytes_per_us / 1e3);
    for (const Shape& shape : TIMED) time_variants(timer, shape, copy_bytes_per_us);
    return 0;
}
