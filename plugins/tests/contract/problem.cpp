#include "problem.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace contract {
namespace {

class Uniform {
  public:
    explicit Uniform(uint32_t seed) : generator_(seed) {}
    float operator()(float least, float most) {
        return least + (most - least) * static_cast<float>(generator_() >> 8) / static_cast<float>(1 << 24);
    }

  private:
    std::mt19937 generator_;
};

double tent(int64_t clip, double index) { return std::max(0.0, 1.0 - std::abs(clip - index)); }

/* One column of a B T columns array at a fractional index of one video of n clips. */
double interpolate(const float* first, int64_t columns, int64_t n, double index) {
    double sum = 0;
    for (int64_t t = 0; t < n; ++t) sum += tent(t, index) * first[t * columns];
    return sum;
}

/* 2 H P values: offsets, then logits. */
std::vector<double> predict(const Sizes& s, const float* endpoints, int64_t n, double centre, double width) {
    std::vector<double> predicted(2 * s.H * s.P, 0.0);
    const double positions[3] = {centre - width / 2, centre, centre + width / 2};
    for (int end = 0; end < 3; ++end) {
        const double index = std::clamp(std::clamp(positions[end], 0.0, 1.0) * n - 0.5, 0.0, n - 1.0);
        for (size_t k = 0; k < predicted.size(); ++k) {
            predicted[k] += interpolate(endpoints + end * predicted.size() + k, s.E(), n, index);
        }
    }
    return predicted;
}

void softmax(double* numbers, int count) {
    const double highest = *std::max_element(numbers, numbers + count);
    double total = 0;
    for (int i = 0; i < count; ++i) total += numbers[i] = std::exp(numbers[i] - highest);
    for (int i = 0; i < count; ++i) numbers[i] /= total;
}

}  // namespace

Problem make_problem(const Sizes& s, uint32_t seed) {
    Uniform uniform(seed);
    Problem p = {s, {}, {}, {}, {}};
    for (int64_t b = 0; b < s.B; ++b) {
        const float between = uniform(1, static_cast<float>(s.T) + 0.99f);
        p.length.push_back(static_cast<int32_t>(b == 0 ? s.T : b == 1 ? 1 : between));
    }
    std::vector<float> level(s.B * s.E());
    for (float& x : level) x = uniform(-1, 1);
    const float change =
        std::min(0.6f, 20.0f / static_cast<float>(s.T * s.T));  // steep offsets would ask more of float than it has
    for (int64_t b = 0; b < s.B; ++b) {
        for (int64_t t = 0; t < s.T; ++t) {
            const float beyond = t < p.length[b] ? 0 : std::numeric_limits<float>::quiet_NaN();
            for (int64_t f = 0; f < s.F(); ++f) p.value.push_back(uniform(-2, 2) + beyond);
            for (int64_t e = 0; e < s.E(); ++e) {
                const bool is_offset = e / (s.H * s.P) % 2 == 0;
                p.endpoints.push_back((is_offset ? level[b * s.E() + e] + change * uniform(-1, 1) : uniform(-2, 2)) +
                                      beyond);
            }
        }
    }
    for (int64_t i = 0; i < s.B * s.M; ++i) {
        p.reference.push_back(i % 4 == 3 ? 1.0f : uniform(-0.3f, 1.3f));
        p.reference.push_back(i % 5 == 4 ? 0.0f : uniform(0.02f, 1.2f));
    }
    return p;
}

std::vector<double> oracle(const Problem& p) {
    const Sizes& s = p.sizes;
    std::vector<double> out;
    for (int64_t i = 0; i < s.B * s.M; ++i) {
        const int64_t b = i / s.M, n = p.length[b];
        const double centre = p.reference[2 * i], width = p.reference[2 * i + 1];
        const float* value = p.value.data() + b * s.T * s.F();
        std::vector<double> predicted = predict(s, p.endpoints.data() + b * s.T * s.E(), n, centre, width);
        for (int h = 0; h < s.H; ++h) softmax(&predicted[s.H * s.P + h * s.P], s.P);
        for (int64_t f = 0; f < s.F(); ++f) {
            double sum = 0;
            for (int64_t k = f / s.D * s.P; k < (f / s.D + 1) * s.P; ++k) {
                const double index = (centre + predicted[k] * width / 2) * n - 0.5;
                sum += predicted[s.H * s.P + k] * interpolate(value + f, s.F(), n, index);
            }
            out.push_back(sum);
        }
    }
    return out;
}

uint16_t half_from_float(float number) {
    const int sign = std::signbit(number) ? 0x8000 : 0;
    if (std::isnan(number)) return 0x7e00;
    int exponent = 0;
    std::frexp(number, &exponent);
    exponent = std::max(exponent - 1, -14);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(std::abs(number), 10 - exponent)));
    return static_cast<uint16_t>(sign + ((exponent + 15) << 10) + steps - 1024);
}

float float_from_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31)
        return mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    const double size = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return static_cast<float>(bits & 0x8000 ? -size : size);
}

}  // namespace contract
