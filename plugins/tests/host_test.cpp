/* The host library against a double-precision oracle, its conversions, and what it says to bad arguments.
 *
 * The oracle is written from plugins/README.md: linear interpolation is a sum over all valid clips of tent weights
 * max(0, 1 - |clip - index|), without a floor, a neighbour or a gather. Prints a line for each failure; exit code 1
 * then.
 */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "sdst/rdsa.h"
#include "value_types.h"

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
    if (holds) return;
    ++failures;
    std::printf("FAILED %s\n", what.c_str());
}

struct alignas(16) Quad {
    float x[4];
};

/* Inputs of one call, owned; clips beyond a video's length hold NaN. */
struct Case {
    int64_t B, T, M;
    int32_t H, P, D;
    std::vector<Quad> value, out;
    std::vector<float> endpoints, reference;
    std::vector<int32_t> length;

    float* values() { return value.data()->x; }
    sdst_rdsa_problem problem() {
        const int64_t F = H * D, E = 6 * H * P;
        return {values(),
                endpoints.data(),
                reference.data(),
                length.data(),
                out.data(),
                B,
                T,
                M,
                H,
                P,
                D,
                SDST_FLOAT,
                T * F,
                F,
                T * E,
                E};
    }
};

Case make_case(int64_t B, int64_t T, int64_t M, int32_t H, int32_t P, int32_t D) {
    std::mt19937 random(static_cast<unsigned>(B * 1000003 + T * 1009 + M * 31 + H * 7 + P * 3 + D));
    std::normal_distribution<float> normal;
    Case c{B, T, M, H, P, D, {}, {}, {}, {}, {}};
    const int64_t F = H * D, E = 6 * H * P;
    c.value.resize(B * T * F / 4);
    c.out.resize(B * M * F / 4);
    c.endpoints.resize(B * T * E);
    std::generate_n(c.values(), B * T * F, [&] { return normal(random); });
    std::generate(c.endpoints.begin(), c.endpoints.end(), [&] { return normal(random); });
    for (int64_t i = 0; i < B * M; ++i) {
        c.reference.push_back(std::uniform_real_distribution<float>(-0.2f, 1.2f)(random));
        c.reference.push_back(std::uniform_real_distribution<float>(0.0f, 1.0f)(random));
    }
    for (int64_t b = 0; b < B; ++b) {
        c.length.push_back(b == 0 ? static_cast<int32_t>(T) : std::uniform_int_distribution<int32_t>(1, T)(random));
        const int64_t first = b * T + c.length[b], end = (b + 1) * T;
        std::fill(c.values() + first * F, c.values() + end * F, std::numeric_limits<float>::quiet_NaN());
        std::fill(c.endpoints.begin() + first * E, c.endpoints.begin() + end * E,
                  std::numeric_limits<float>::quiet_NaN());
    }
    return c;
}

double tent(double index, int32_t clip) { return std::max(0.0, 1.0 - std::abs(clip - index)); }

/* The sum over valid clips of `at(clip)` by tent weights. */
double interpolate(double index, int32_t n, const std::function<double(int32_t)>& at) {
    double sum = 0;
    for (int32_t clip = 0; clip < n; ++clip) {
        const double share = tent(index, clip);
        if (share > 0) sum += share * at(clip);
    }
    return sum;
}

/* out[b, m] of width F, in double. */
std::vector<double> oracle(Case& c, int64_t b, int64_t m) {
    const int32_t n = c.length[b];
    const int64_t HP = c.H * c.P, F = c.H * c.D;
    const double centre = c.reference[2 * (b * c.M + m)], width = c.reference[2 * (b * c.M + m) + 1];
    const auto predicted = [&](int64_t column) {
        double sum = 0;
        for (int end = 0; end < 3; ++end) {
            const double position = std::clamp(centre + (end - 1) * width / 2, 0.0, 1.0);
            const double index = std::clamp(position * n - 0.5, 0.0, n - 1.0);
            sum += interpolate(
                index, n, [&](int32_t clip) { return c.endpoints[((b * c.T + clip) * 3 + end) * 2 * HP + column]; });
        }
        return sum;
    };
    std::vector<double> out(F, 0.0);
    for (int64_t h = 0; h < c.H; ++h) {
        double total = 0;
        for (int64_t p = 0; p < c.P; ++p) total += std::exp(predicted(HP + h * c.P + p));
        for (int64_t p = 0; p < c.P; ++p) {
            const double weight = std::exp(predicted(HP + h * c.P + p)) / total;
            const double index = (centre + predicted(h * c.P + p) * width / 2) * n - 0.5;
            for (int64_t f = h * c.D; f < (h + 1) * c.D; ++f) {
                out[f] +=
                    weight * interpolate(index, n, [&](int32_t clip) { return c.values()[(b * c.T + clip) * F + f]; });
            }
        }
    }
    return out;
}

void test_against_oracle() {
    const struct {
        int64_t B, T, M;
        int32_t H, P, D;
    } sizes[] = {{1, 1, 1, 1, 1, 16},  {2, 2, 3, 1, 2, 16},   {3, 9, 5, 2, 3, 32},
                 {2, 24, 7, 8, 4, 32}, {3, 17, 4, 3, 4, 16},  {2, 12, 4, 2, 16, 64},
                 {1, 30, 2, 5, 6, 64}, {2, 11, 3, 1, 15, 32}, {4, 13, 9, 4, 8, 16}};
    for (const auto& s : sizes) {
        Case c = make_case(s.B, s.T, s.M, s.H, s.P, s.D);
        const sdst_rdsa_problem problem = c.problem();
        expect(sdst_rdsa(&problem, nullptr) == SDST_OK, std::string("status: ") + sdst_last_error());
        double worst = 0;
        for (int64_t b = 0; b < c.B; ++b) {
            for (int64_t m = 0; m < c.M; ++m) {
                const std::vector<double> expected = oracle(c, b, m);
                const float* got = c.out.data()->x + (b * c.M + m) * c.H * c.D;
                for (size_t f = 0; f < expected.size(); ++f) {
                    const double error = std::abs(got[f] - expected[f]);
                    if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
                }
            }
        }
        expect(worst <= 2e-4, "B" + std::to_string(s.B) + " T" + std::to_string(s.T) + " M" + std::to_string(s.M) +
                                  " H" + std::to_string(s.H) + " P" + std::to_string(s.P) + " D" + std::to_string(s.D) +
                                  ": error " + std::to_string(worst));
    }
}

void test_conversions() {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const float half = sdst::float_of_half(bits);
        const bool nan = (bits & 0x7fffu) > 0x7c00u;
        expect(nan ? std::isnan(half) : sdst::half_of_float(half) == bits, "half " + std::to_string(bits));
        if (nan || (bits & 0x7fffu) >= 0x7bffu) continue;
        const float next = sdst::float_of_half(bits + 1), middle = half + (next - half) / 2;
        expect(sdst::half_of_float(middle) == bits + (bits & 1),
               "half: a tie goes to even after " + std::to_string(bits));
        expect(sdst::half_of_float(std::nextafter(middle, next)) == bits + 1,
               "half: rounding up after " + std::to_string(bits));
    }
    expect(sdst::half_of_float(65519.99f) == 0x7bffu && sdst::half_of_float(65520.0f) == 0x7c00u, "half: overflow");
    expect(std::isnan(sdst::float_of_half(sdst::half_of_float(NAN))), "half: NaN");
    expect(sdst::bfloat16_of_float(1.00390625f) == 0x3f80u && sdst::bfloat16_of_float(1.01171875f) == 0x3f82u,
           "bfloat16: ties");
    expect((sdst::bfloat16_of_float(NAN) & 0x7fffu) > 0x7f80u, "bfloat16: NaN");
}

/* NaN and infinite inputs give what plugins/README.md says. */
void test_not_numbers() {
    constexpr float INF = std::numeric_limits<float>::infinity();
    Case c = make_case(1, 6, 4, 1, 4, 16);
    c.reference = {NAN, 0.5f, 0.5f, NAN, INF, 0.5f, 0.5f, 0.5f};
    const sdst_rdsa_problem problem = c.problem();
    expect(sdst_rdsa(&problem, nullptr) == SDST_OK, "NaN references run");
    const float* out = c.out.data()->x;
    expect(std::isnan(out[0]) && std::isnan(out[16]), "a NaN reference gives NaN");
    expect(out[32] == 0.0f, "an infinite centre samples nothing");
    expect(std::isfinite(out[48]), "its neighbours are untouched");
    for (int64_t clip = 0; clip < 6; ++clip) c.endpoints[clip * 24 + 8] = INF;  // the centre's offset of point 0
    for (int64_t clip = 0; clip < 6; ++clip) std::fill_n(c.endpoints.begin() + clip * 24 + 9, 3, -INF);
    expect(sdst_rdsa(&problem, nullptr) == SDST_OK && out[48] == 0.0f, "infinite offsets sample nothing");
    c.length[0] = 1 << 30;
    expect(sdst_rdsa(&problem, nullptr) == SDST_OK, "a length beyond T is read as T");
    c.length[0] = -5;
    expect(sdst_rdsa(&problem, nullptr) == SDST_OK, "a negative length is read as 1");
}

void test_bad_arguments() {
    Case c = make_case(2, 6, 4, 2, 4, 16);
    const struct {
        const char* member;
        std::function<void(sdst_rdsa_problem&)> spoil;
    } spoilt[] = {
        {"batch", [](auto& p) { p.batch = -1; }},
        {"clips", [](auto& p) { p.clips = 0; }},
        {"clips", [](auto& p) { p.clips = (1 << 24) + 1; }},
        {"moments", [](auto& p) { p.moments = int64_t{1} << 40; }},
        {"heads", [](auto& p) { p.heads = 0; }},
        {"points", [](auto& p) { p.points = 17; }},
        {"depth", [](auto& p) { p.depth = 24; }},
        {"type", [](auto& p) { p.type = 3; }},
        {"value_clip_stride", [](auto& p) { p.value_clip_stride = 31; }},
        {"value_batch_stride", [](auto& p) { p.value_batch_stride = -8; }},
        {"strides of value", [](auto& p) { p.value_clip_stride = 33; }},
        {"endpoints_clip_stride", [](auto& p) { p.endpoints_clip_stride = 47; }},
        {"endpoints: expected at most 4 GiB", [](auto& p) { p.endpoints_clip_stride = int64_t{1} << 31; }},
        {"value: expected at most 4 GiB", [](auto& p) { p.value_clip_stride = int64_t{1} << 62; }},
        {"value: expected a pointer", [](auto& p) { p.value = nullptr; }},
        {"value: expected an address", [](auto& p) { p.value = static_cast<const char*>(p.value) + 8; }},
        {"reference: expected an address", [](auto& p) { p.reference += 1; }},
        {"length", [](auto& p) { p.length = nullptr; }},
        {"out", [](auto& p) { p.out = static_cast<char*>(p.out) + 4; }},
    };
    for (const auto& s : spoilt) {
        sdst_rdsa_problem problem = c.problem();
        s.spoil(problem);
        expect(sdst_rdsa(&problem, nullptr) == SDST_BAD_ARGUMENT, std::string("refused: ") + s.member);
        expect(std::strstr(sdst_last_error(), s.member) != nullptr,
               std::string(s.member) + " is named in: " + sdst_last_error());
    }
    const sdst_rdsa_problem good = c.problem();
    expect(sdst_rdsa(nullptr, nullptr) == SDST_BAD_ARGUMENT, "no problem at all");
    expect(sdst_rdsa(&good, &c) == SDST_BAD_ARGUMENT, "the host library takes no stream");
    sdst_rdsa_problem empty = good;
    empty.batch = 0;
    empty.value = nullptr;
    expect(sdst_rdsa(&empty, nullptr) == SDST_OK, "an empty batch is no error");
}

/* Strides that skip, repeat and misalign give what contiguous inputs give. */
void test_strides() {
    Case c = make_case(2, 6, 4, 2, 4, 16);
    sdst_rdsa_problem problem = c.problem();
    sdst_rdsa(&problem, nullptr);
    const std::vector<Quad> expected = c.out;
    std::vector<float> spread(2 * 6 * 51 + 1);
    for (int64_t row = 0; row < 12; ++row)
        std::copy_n(c.endpoints.begin() + row * 48, 48, spread.begin() + 1 + row * 51);
    problem.endpoints = spread.data() + 1;
    problem.endpoints_clip_stride = 51;
    problem.endpoints_batch_stride = 6 * 51;
    std::fill(c.out.begin(), c.out.end(), Quad{});
    expect(sdst_rdsa(&problem, nullptr) == SDST_OK, "odd strides");
    double worst = 0;
    for (size_t i = 0; i < expected.size() * 4; ++i) {
        worst = std::max<double>(worst, std::abs(c.out.data()->x[i] - expected.data()->x[i]));
    }
    expect(worst < 1e-5, "odd strides: error " + std::to_string(worst));
}

}  // namespace

int main() {
    test_conversions();
    test_against_oracle();
    test_not_numbers();
    test_bad_arguments();
    test_strides();
    expect(std::strstr(sdst_build_info(), "\"device\": \"host\"") != nullptr, sdst_build_info());
    std::printf("%s\n", failures ? "host_test: failed" : "host_test: passed");
    return failures ? 1 : 0;
}
