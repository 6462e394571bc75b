/* What this library was built with; the definitions come from CMakeLists.txt. */
#include "sdst/rdsa.h"

#ifdef SDST_TENSORRT
#include <NvInferVersion.h>
#endif

#define SDST_TEXT_OF(x) #x
#define SDST_TEXT(x) SDST_TEXT_OF(x)

#ifdef SDST_TENSORRT
#define SDST_TENSORRT_VERSION \
    SDST_TEXT(NV_TENSORRT_MAJOR) "." SDST_TEXT(NV_TENSORRT_MINOR) "." SDST_TEXT(NV_TENSORRT_PATCH)
#else
#define SDST_TENSORRT_VERSION ""
#endif

const char* sdst_build_info(void) {
    return "{\"version\": \"1\", \"device\": \"" SDST_DEVICE "\", \"cuda\": \"" SDST_CUDA_VERSION
           "\", \"architectures\": [" SDST_ARCHITECTURES "], \"ptx\": [" SDST_PTX
           "], \"tensorrt\": \"" SDST_TENSORRT_VERSION "\"}";
}
