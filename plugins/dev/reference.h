/* Inputs, the reference in double and the bytes that must be moved, for the kernel variants. Host only.
 *
 * Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D. Source: plugins/README.md.
 */
#ifndef SDST_DEV_REFERENCE_H
#define SDST_DEV_REFERENCE_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace reference {

struct Shape {
    int64_t B, T, M;
    int H, P, D;
    bool plain;  // all clips valid and moments inside; else ragged lengths, and every fourth moment may lie outside
};

struct Inputs {
    Shape shape;
    std::vector<float> value;      // B T F; half and bfloat16 hold them exactly
    std::vector<float> endpoints;  // B T 3 2 H P
    std::vector<float> moments;    // B M 2: centre, width
    std::vector<int32_t> length;   // B
};

/* Even numbers in -1..1 (splitmix64): the same everywhere, and faster than the engines of the standard library. */
class Noise {
  public:
    float operator()() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return static_cast<float>(static_cast<int64_t>(z ^ (z >> 31)) >> 40) * 0x1p-23f;
    }
    float between(float least, float most) { return least + (most - least) * 0.5f * ((*this)() + 1.0f); }

  private:
    uint64_t state_ = 0;
};

/* Offsets hardly change from clip to clip: float32 indices would otherwise err by more than half values do. */
inline Inputs make_inputs(const Shape& shape) {
    const int64_t B = shape.B, T = shape.T, M = shape.M;
    const int64_t HP = static_cast<int64_t>(shape.H) * shape.P, F = static_cast<int64_t>(shape.H) * shape.D;
    Noise noise;
    Inputs x{shape, std::vector<float>(B * T * F), std::vector<float>(B * T * 6 * HP), {}, {}};
    for (float& value : x.value) value = std::round(100.0f * noise()) / 64.0f;
    const float change = std::min(0.6f, 20.0f / static_cast<float>(T * T));
    for (int64_t i = 0; i < B * T * 6 * HP; ++i) {
        const int64_t column = i % (6 * HP);
        const bool is_offset = column / HP % 2 == 0;
        const float level = std::cos(1.7f * static_cast<float>(column));
        x.endpoints[i] = is_offset ? level + change * noise() : 1.7f * noise();
    }
    for (int64_t i = 0; i < B * M; ++i) {
        const bool inside = shape.plain || i % 4 != 0;
        x.moments.push_back(inside ? noise.between(0.05f, 0.95f) : noise.between(-0.5f, 1.5f));
        x.moments.push_back(inside ? noise.between(0.02f, 0.6f) : noise.between(0.0f, 2.0f));
    }
    for (int64_t b = 0; b < B; ++b) {
        const int64_t n = shape.plain || b == 0 ? T : 1 + (b * 7919) % T;
        x.length.push_back(static_cast<int32_t>(n));  // what lies beyond must not be read
        std::fill(x.value.begin() + (b * T + n) * F, x.value.begin() + (b + 1) * T * F, NAN);
        std::fill(x.endpoints.begin() + (b * T + n) * 6 * HP, x.endpoints.begin() + (b + 1) * T * 6 * HP, NAN);
    }
    return x;
}

/* Clips around an index and their shares in a linear interpolation; one outside the n valid clips has none. */
struct Tent {
    int64_t clip[2];
    double share[2];

    Tent(double index, int64_t n) {
        const double low = std::floor(index);
        for (int side = 0; side < 2; ++side) {
            const double at = low + side;
            const bool valid = at >= 0 && at < static_cast<double>(n);
            clip[side] = valid ? static_cast<int64_t>(at) : 0;
            share[side] = valid ? 1.0 - std::abs(index - at) : 0.0;
        }
    }
};

inline Tent tent_of_end(const Inputs& x, int64_t item, int end) {
    const int64_t n = x.length[item / x.shape.M];
    const double position = x.moments[2 * item] + (end - 1) * (x.moments[2 * item + 1] / 2.0);
    const double index = std::clamp(position, 0.0, 1.0) * static_cast<double>(n) - 0.5;
    return Tent(std::clamp(index, 0.0, static_cast<double>(n - 1)), n);
}

/* Row b, clip t, end e of endpoints; then H P offsets and H P logits. */
inline int64_t endpoints_at(const Shape& s, int64_t b, int64_t t, int end) {
    return ((b * s.T + t) * 3 + end) * 2 * s.H * s.P;
}

struct Points {
    std::vector<Tent> tents;      // H P
    std::vector<double> weights;  // H P, sums to 1 over P
};

inline Points points_of(const Inputs& x, int64_t item) {
    const Shape& s = x.shape;
    const int HP = s.H * s.P;
    const int64_t b = item / s.M, n = x.length[b];
    std::vector<double> rows(2 * HP, 0.0);
    for (int end = 0; end < 3; ++end) {
        const Tent tent = tent_of_end(x, item, end);
        for (int side = 0; side < 2; ++side) {
            const float* row = &x.endpoints[endpoints_at(s, b, tent.clip[side], end)];
            for (int i = 0; i < 2 * HP; ++i) rows[i] += tent.share[side] * row[i];
        }
    }
    Points points;
    for (int i = 0; i < HP; ++i) {
        const double location = x.moments[2 * item] + rows[i] * x.moments[2 * item + 1] / 2.0;
        points.tents.emplace_back(location * static_cast<double>(n) - 0.5, n);
        double total = 0.0;
        for (int p = 0; p < s.P; ++p) total += std::exp(rows[HP + i / s.P * s.P + p] - rows[HP + i]);
        points.weights.push_back(1.0 / total);
    }
    return points;
}

/* out B M F. */
inline std::vector<double> rdsa(const Inputs& x) {
    const Shape& s = x.shape;
    const int64_t F = static_cast<int64_t>(s.H) * s.D;
    std::vector<double> out(s.B * s.M * F, 0.0);
    for (int64_t item = 0; item < s.B * s.M; ++item) {
        const Points points = points_of(x, item);
        for (int i = 0; i < s.H * s.P; ++i) {
            for (int side = 0; side < 2; ++side) {
                const double weight = points.weights[i] * points.tents[i].share[side];
                const int64_t row = (item / s.M * s.T + points.tents[i].clip[side]) * F;
                for (int64_t c = i / s.P * s.D; c < (i / s.P + 1) * s.D; ++c) {
                    out[item * F + c] += weight * x.value[row + c];
                }
            }
        }
    }
    return out;
}

/* Bytes that these inputs, with half values, force any kernel to move: unique 32-byte sectors of value and
 * endpoints that have a share in the result, references, lengths, and the result. */
class Traffic {
  public:
    explicit Traffic(const Inputs& x)
        : value_(x.value.size() * 2 / SECTOR + 1), endpoints_(x.endpoints.size() * 4 / SECTOR + 1) {
        const Shape& s = x.shape;
        const int64_t F = static_cast<int64_t>(s.H) * s.D, row_bytes = 2L * s.H * s.P * 4;
        for (int64_t item = 0; item < s.B * s.M; ++item) {
            const int64_t b = item / s.M;
            for (int end = 0; end < 3; ++end) {
                const Tent tent = tent_of_end(x, item, end);
                for (int side = 0; side < 2; ++side) {
                    if (tent.share[side] > 0) mark(endpoints_, endpoints_at(s, b, tent.clip[side], end) * 4, row_bytes);
                }
            }
            const Points points = points_of(x, item);
            for (int i = 0; i < s.H * s.P; ++i) {
                for (int side = 0; side < 2; ++side) {
                    const int64_t column = (b * s.T + points.tents[i].clip[side]) * F + i / s.P * s.D;
                    if (points.tents[i].share[side] > 0) mark(value_, column * 2, s.D * 2L);
                }
            }
        }
        bytes_ = (count(value_) + count(endpoints_)) * SECTOR + s.B * s.M * (F * 2 + 8) + s.B * 4;
    }

    int64_t bytes() const { return bytes_; }

  private:
    static constexpr int64_t SECTOR = 32;
    std::vector<bool> value_, endpoints_;
    int64_t bytes_ = 0;

    static void mark(std::vector<bool>& sectors, int64_t first_byte, int64_t bytes) {
        for (int64_t i = first_byte / SECTOR; i <= (first_byte + bytes - 1) / SECTOR; ++i) sectors[i] = true;
    }
    static int64_t count(const std::vector<bool>& sectors) { return std::count(sectors.begin(), sectors.end(), true); }
};

}  // namespace reference

#endif
