/* The op on host pointers: the index space of the CUDA kernel, walked by one thread. */
#include "error.h"
#include "rdsa_check.h"
#include "rdsa_item.h"

namespace {

template <class Value, int STEP, bool ONE_STEP>
void run(const sdst_rdsa_problem& problem) {
    const int32_t chunks = problem.heads * problem.depth / Value::COUNT;
    for (int64_t b = 0; b < problem.batch; ++b) {
        for (int64_t m = 0; m < problem.moments; ++m) {
            for (int32_t chunk = 0; chunk < chunks; ++chunk) {
                sdst::rdsa_item<Value, STEP, ONE_STEP>(problem, b, m, chunk);
            }
        }
    }
}

template <class Value>
void run(const sdst_rdsa_problem& problem) {
    switch (sdst::point_step(problem)) {
        case 4: return run<Value, 4, true>(problem);
        case 2: return run<Value, 2, false>(problem);
        default: return run<Value, 1, false>(problem);
    }
}

}  // namespace

int sdst_rdsa(const sdst_rdsa_problem* problem, void* stream) {
    if (const int status = sdst::check(problem)) return status;
    if (stream != nullptr) {
        return sdst::fail(SDST_BAD_ARGUMENT, "rdsa: stream: expected NULL (this is the host library), got one");
    }
    switch (problem->type) {
        case SDST_HALF: run<sdst::Half>(*problem); break;
        case SDST_BFLOAT16: run<sdst::Bfloat16>(*problem); break;
        default: run<sdst::Float>(*problem);
    }
    return SDST_OK;
}
