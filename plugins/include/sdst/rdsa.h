/* C API of the op sdst::RDSA: pointers, sizes, strides and a stream. No framework, no allocation, no synchronisation.
 *
 * Two libraries have this same API: libsdst_plugins.so (pointers are device pointers, work goes to the stream) and
 * libsdst_plugins_host.so (pointers are host pointers, the work is done when the call returns).
 * What is computed: plugins/README.md. Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D.
 */
#ifndef SDST_RDSA_H
#define SDST_RDSA_H

#include <stdint.h>

#define SDST_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum sdst_status { SDST_OK = 0, SDST_BAD_ARGUMENT = 1, SDST_CUDA_ERROR = 2 };
enum sdst_type { SDST_FLOAT = 0, SDST_HALF = 1, SDST_BFLOAT16 = 2 };

/* One call of the op. Inputs have unit stride in their last dimension; reference, length and out are contiguous.
 * value and out are 16-byte aligned, and so is every row of value; reference is 8-byte aligned. Strides count elements.
 */
typedef struct sdst_rdsa_problem {
    const void* value;             /* B T F, of `type` */
    const float* endpoints;        /* B T 3*2*H*P */
    const float* reference;        /* B M 2: centre, width; fractions of the valid length */
    const int32_t* length;         /* B: valid clips; a value outside 1..T is read as the nearer of the two */
    void* out;                     /* B M F, of `type` */
    int64_t batch, clips, moments; /* clips up to 2^24; value and endpoints up to 4 GiB a video */
    int32_t heads, points, depth;  /* points 1..16; depth 16, 32 or 64 */
    int32_t type;                  /* an sdst_type */
    int64_t value_batch_stride, value_clip_stride;
    int64_t endpoints_batch_stride, endpoints_clip_stride;
} sdst_rdsa_problem;

/* Runs the op, on `stream` (a cudaStream_t; the host library takes none and wants NULL).
 * Returns an sdst_status. Nothing is written unless it is SDST_OK; errors inside the kernel appear on the stream. */
SDST_API int sdst_rdsa(const sdst_rdsa_problem* problem, void* stream);

/* One line on the calling thread's last failure: what was expected, what came. Empty before the first one.
 * Valid until the thread's next failure. */
SDST_API const char* sdst_last_error(void);

/* JSON on how this library was built:
 * {"version": "1", "device": "cuda" or "host", "cuda": "13.0" or "", "architectures": [75, ...] (of machine code),
 * "ptx": [120] (what newer GPUs compile at first use), "tensorrt": "10.16.1" (of the headers; "" when the library holds
 * no TensorRT plugin)}. */
SDST_API const char* sdst_build_info(void);

#ifdef __cplusplus
}
#endif

#endif
