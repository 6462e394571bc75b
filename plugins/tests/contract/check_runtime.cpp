/* The life of a plugin from a plan to its contexts, and the numbers that it computes on host pointers. */
#include <cmath>
#include <limits>

#include "checks.h"
#include "problem.h"
#include "tensors.h"

namespace contract {
namespace {

using nvinfer1::DataType;
using nvinfer1::TensorRTPhase;

struct NoResources final : nvinfer1::IPluginResourceContext {
    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

std::string plan_of(nvinfer1::IPluginV3& plugin) {
    const nvinfer1::PluginFieldCollection* fields = runtime(plugin).getFieldsToSerialize();
    return fields == nullptr ? "null" : SerialisedFields(*fields).text();
}

/* An output that must be written whole and not beyond. */
class Output {
  public:
    Output(int64_t count, DataType type)
        : count_(count), type_(type), floats_(count + GUARD, EMPTY), halves_(count + GUARD, HALF_EMPTY) {}

    void* data() { return type_ == DataType::kHALF ? static_cast<void*>(halves_.data()) : floats_.data(); }
    float at(int64_t i) const { return type_ == DataType::kHALF ? float_from_half(halves_[i]) : floats_[i]; }
    bool untouched_from(int64_t first) const {
        for (int64_t i = first; i < count_ + GUARD; ++i) {
            if (floats_[i] != EMPTY || halves_[i] != HALF_EMPTY) return false;
        }
        return true;
    }

  private:
    static constexpr int64_t GUARD = 32;
    static constexpr float EMPTY = 12345.0f;
    static constexpr uint16_t HALF_EMPTY = 0x7bff;

    int64_t count_;
    DataType type_;
    std::vector<float> floats_;
    std::vector<uint16_t> halves_;
};

/* Values become what the type can hold, so that the oracle sees the same. */
std::vector<uint16_t> round_to_half(Problem& problem) {
    std::vector<uint16_t> halves;
    for (float& number : problem.value) {
        halves.push_back(half_from_float(number));
        number = float_from_half(halves.back());
    }
    return halves;
}

int32_t enqueue(nvinfer1::IPluginV3& plugin, const Problem& problem, const void* value, const AllDescs& descs,
                Output& out) {
    const void* inputs[INPUTS] = {value, problem.endpoints.data(), problem.reference.data(), problem.length.data()};
    void* outputs[1] = {out.data()};
    return runtime(plugin).enqueue(descs.data(), &descs[INPUTS], inputs, outputs, nullptr, nullptr);
}

/* Empty when all is right, else the first wrong number. Float32 holds 1e-5 of values of order 1 up to T = 24. */
std::string first_mistake(const Problem& problem, const Output& out, DataType type) {
    const std::vector<double> expected = oracle(problem);
    const double rounding = type == DataType::kHALF ? std::ldexp(1.0, -11) : 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double tolerance = 1e-5 + rounding * std::abs(expected[i]);
        if (std::abs(out.at(i) - expected[i]) <= tolerance) continue;
        const size_t F = problem.sizes.F();
        return "moment " + std::to_string(i / F) + " feature " + std::to_string(i % F) + ": expected " +
               std::to_string(expected[i]) + ", got " + std::to_string(out.at(i));
    }
    return "";
}

void check_numbers(const PluginLibrary& library, Report& report, const std::string& name, const Sizes& sizes,
                   DataType type) {
    Problem problem = make_problem(sizes, 7);
    const std::vector<uint16_t> halves = round_to_half(problem);
    if (type == DataType::kFLOAT) problem = make_problem(sizes, 7);
    const void* value = type == DataType::kHALF ? static_cast<const void*>(halves.data()) : problem.value.data();
    const Plugin plugin = library.create(sizes.H, sizes.P);
    const AllDescs descs = describe(dims_of(sizes), types_of(type));
    const int32_t changed = runtime(*plugin).onShapeChange(descs.data(), INPUTS, &descs[INPUTS], 1);
    const int64_t count = sizes.B * sizes.M * sizes.F();
    Output out(count, type);
    const int32_t status = enqueue(*plugin, problem, value, descs, out);
    if (changed != 0 || status != 0) return report.check(name, false, library.last_error());
    const std::string mistake = first_mistake(problem, out, type);
    report.check(name, mistake.empty(), mistake);
    report.check(name + ": nothing is written beyond", out.untouched_from(count));
}

void check_refusals_of_enqueue(const PluginLibrary& library, Report& report) {
    const Sizes sizes = {2, 12, 5, 2, 4, 16};
    const Problem problem = make_problem(sizes, 1);
    const struct {
        const char* what;
        const char* about;
        void (*spoil)(AllDescs& descs);
    } cases[] = {
        {"depth 20", "depth", [](AllDescs& d) { d[0].dims.d[2] = 40; }},
        {"no clips", "clips", [](AllDescs& d) { d[0].dims.d[1] = 0; }},
        {"rows of endpoints that are too short", "endpoints", [](AllDescs& d) { d[1].dims.d[2] = 16; }},
    };
    for (const auto& bad : cases) {
        AllDescs descs = describe(dims_of(sizes), types_of(DataType::kFLOAT));
        bad.spoil(descs);
        const Plugin plugin = library.create(sizes.H, sizes.P);
        Output out(sizes.B * sizes.M * sizes.F(), DataType::kFLOAT);
        library.forget_last_error();
        const int32_t status = enqueue(*plugin, problem, problem.value.data(), descs, out);
        check_refusal(library, report, std::string("enqueue reports ") + bad.what, status != 0, bad.about);
        report.check(std::string("enqueue writes nothing with ") + bad.what, out.untouched_from(0));
    }
}

}  // namespace

void check_lifecycle(const PluginLibrary& library, Report& report) {
    const std::string expected = "num_heads=3*1 num_points=5*1 ";
    Plugin built = library.create(3, 5);
    report.check("a plan holds the fields", plan_of(*built) == expected, plan_of(*built));
    const SerialisedFields plan(*runtime(*built).getFieldsToSerialize());
    const std::string id = build(*built).getTimingCacheID() == nullptr ? "" : build(*built).getTimingCacheID();

    Plugin clone(built->clone());
    report.check("a clone is another plugin", clone != nullptr && clone != built);
    built.reset();  // a clone must not lean on what it was made from
    report.check("a clone keeps the fields", plan_of(*clone) == expected, plan_of(*clone));
    const char* clone_id = build(*clone).getTimingCacheID();
    report.check("a clone keeps the timing cache ID", clone_id != nullptr && id == clone_id,
                 clone_id == nullptr ? "null" : clone_id);
    clone.reset();

    Plugin recreated(library.creator().createPlugin("step", plan.collection(), TensorRTPhase::kRUNTIME));
    report.check("a plan makes the plugin again", recreated != nullptr && plan_of(*recreated) == expected,
                 library.last_error());
    if (recreated == nullptr) return;

    NoResources first_context, second_context;
    Plugin first(runtime(*recreated).attachToContext(&first_context)),
        second(runtime(*recreated).attachToContext(&second_context));
    report.check("each context has its own plugin", first && second && first != second && first != recreated);
    first.reset();
    recreated.reset();
    report.check("a context's plugin keeps the fields", plan_of(*second) == expected, plan_of(*second));

    const Sizes sizes = {2, 4, 9, 3, 5, 16};
    const Problem problem = make_problem(sizes, 3);
    Output out(sizes.B * sizes.M * sizes.F(), DataType::kFLOAT);
    const int32_t status =
        enqueue(*second, problem, problem.value.data(), describe(dims_of(sizes), types_of(DataType::kFLOAT)), out);
    const std::string mistake = status == 0 ? first_mistake(problem, out, DataType::kFLOAT) : library.last_error();
    report.check("a context's plugin computes", mistake.empty(), mistake);
}

void check_enqueue(const PluginLibrary& library, Report& report) {
    const struct {
        const char* name;
        Sizes sizes;
    } cases[] = {
        {"one of everything", {1, 1, 1, 1, 1, 16}},
        {"more moments than clips", {3, 6, 30, 2, 2, 32}},
        {"ragged", {4, 17, 5, 2, 4, 16}},
        {"eight heads", {2, 24, 7, 8, 4, 32}},
        {"depth 64, odd points", {3, 9, 4, 3, 5, 64}},
        {"16 points", {2, 11, 3, 1, 16, 16}},
    };
    for (const auto& one : cases) {
        check_numbers(library, report, std::string("enqueue, float, ") + one.name, one.sizes, DataType::kFLOAT);
        check_numbers(library, report, std::string("enqueue, half, ") + one.name, one.sizes, DataType::kHALF);
    }
    check_refusals_of_enqueue(library, report);
}

}  // namespace contract
