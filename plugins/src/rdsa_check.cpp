#include "rdsa_check.h"

#include <cstdint>
#include <exception>
#include <string>

#include "error.h"
#include "rdsa_limits.h"

namespace sdst {
namespace {

int bad(const std::string& member, const std::string& expected, const std::string& got) {
    return fail(SDST_BAD_ARGUMENT, "rdsa: " + member + ": expected " + expected + ", got " + got);
}

bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

std::string range(int64_t least, int64_t most) { return std::to_string(least) + " to " + std::to_string(most); }

int check_sizes(const sdst_rdsa_problem& p) {
    const struct {
        const char* name;
        int64_t size, least, most;
    } sizes[] = {
        {"batch", p.batch, 0, MOST_ROWS},     {"clips", p.clips, 1, MOST_CLIPS},
        {"moments", p.moments, 0, MOST_ROWS}, {"heads", p.heads, 1, MOST_HEADS},
        {"points", p.points, 1, MOST_POINTS}, {"type", p.type, SDST_FLOAT, SDST_BFLOAT16},
    };
    for (const auto& s : sizes) {
        if (s.size < s.least || s.size > s.most) return bad(s.name, range(s.least, s.most), std::to_string(s.size));
    }
    if (!is_depth(p.depth)) return bad("depth", DEPTHS_TEXT, std::to_string(p.depth));
    return SDST_OK;
}

int check_video(const char* name, int64_t clips, int64_t clip_stride, int64_t row, int64_t size) {
    const bool fits = clip_stride <= MOST_VIDEO_BYTES && (clips - 1) * clip_stride + row <= MOST_VIDEO_BYTES / size;
    if (fits) return SDST_OK;
    return bad(name, "at most 4 GiB a video",
               std::to_string(clips) + " clips of " + std::to_string(clip_stride) + " elements");
}

int check_strides(const sdst_rdsa_problem& p) {
    const int64_t width = static_cast<int64_t>(p.heads) * p.depth;
    const int64_t columns = 6 * static_cast<int64_t>(p.heads) * p.points;
    const struct {
        const char* name;
        int64_t stride, row;
    } strides[] = {
        {"value_clip_stride", p.value_clip_stride, width},
        {"value_batch_stride", p.value_batch_stride, width},
        {"endpoints_clip_stride", p.endpoints_clip_stride, columns},
        {"endpoints_batch_stride", p.endpoints_batch_stride, columns},
    };
    for (const auto& s : strides) {
        if (s.stride < 0 || (s.stride != 0 && s.stride < s.row)) {
            return bad(s.name, "0 (one row for all) or at least a row of " + std::to_string(s.row) + " elements",
                       std::to_string(s.stride));
        }
    }
    const int64_t value_size = p.type == SDST_FLOAT ? 4 : 2;
    if (const int status = check_video("value", p.clips, p.value_clip_stride, width, value_size)) return status;
    if (const int status = check_video("endpoints", p.clips, p.endpoints_clip_stride, columns, 4)) return status;
    const int count = pack_count(p.type);
    if (p.value_clip_stride % count != 0 || p.value_batch_stride % count != 0) {
        return bad("strides of value", "multiples of " + std::to_string(count) + " elements (16 bytes)",
                   std::to_string(p.value_batch_stride) + " and " + std::to_string(p.value_clip_stride));
    }
    return SDST_OK;
}

int check_pointers(const sdst_rdsa_problem& p) {
    const struct {
        const char* name;
        const void* pointer;
        size_t alignment;
    } pointers[] = {
        {"value", p.value, 16}, {"endpoints", p.endpoints, 4}, {"reference", p.reference, 8}, {"length", p.length, 4},
        {"out", p.out, 16},
    };
    for (const auto& x : pointers) {
        if (x.pointer == nullptr) return bad(x.name, "a pointer", "null");
        if (!aligned(x.pointer, x.alignment)) {
            return bad(x.name, "an address that is a multiple of " + std::to_string(x.alignment),
                       std::to_string(reinterpret_cast<uintptr_t>(x.pointer)));
        }
    }
    return SDST_OK;
}

}  // namespace

int check(const sdst_rdsa_problem* problem) noexcept {
    try {
        if (problem == nullptr) return bad("problem", "a pointer", "null");
        if (const int status = check_sizes(*problem)) return status;
        if (const int status = check_strides(*problem)) return status;
        if (problem->batch == 0 || problem->moments == 0) return SDST_OK;  // nothing will be read
        return check_pointers(*problem);
    } catch (const std::exception&) {  // out of memory for a message; exceptions must not cross the C API
        return SDST_BAD_ARGUMENT;
    }
}

int pack_count(int32_t type) { return type == SDST_FLOAT ? 4 : 8; }

int point_step(const sdst_rdsa_problem& p) {
    const auto loads_of = [&p](int count) {
        return aligned(p.endpoints, count * sizeof(float)) && p.endpoints_clip_stride % count == 0 &&
               p.endpoints_batch_stride % count == 0;
    };
    if (p.points == 4 && loads_of(4)) return 4;
    return p.points % 2 == 0 && loads_of(2) ? 2 : 1;
}

}  // namespace sdst
