/* What sdst_rdsa computes and no more: written here once for both libraries and the TensorRT plugin.
 * Python has the same in sdst_runtime/sessions/plugin_library.py; a test holds the two together.
 */
#ifndef SDST_RDSA_LIMITS_H
#define SDST_RDSA_LIMITS_H

#include <cstdint>
#include <limits>

namespace sdst {

constexpr int32_t MOST_HEADS = 1 << 16;
constexpr int32_t MOST_POINTS = 16;
constexpr int32_t DEPTHS[] = {16, 32, 64};
constexpr const char* DEPTHS_TEXT = "16, 32 or 64";
constexpr int64_t MOST_ROWS = std::numeric_limits<int32_t>::max();  // of B, and of M
constexpr int64_t MOST_CLIPS = 1 << 24;                             // a float counts them exactly
constexpr int64_t MOST_VIDEO_BYTES = int64_t{1} << 32;  // the kernel counts bytes within one video in 32 bits

constexpr bool is_depth(int64_t depth) {
    for (const int32_t allowed : DEPTHS) {
        if (depth == allowed) return true;
    }
    return false;
}

}  // namespace sdst

#endif
