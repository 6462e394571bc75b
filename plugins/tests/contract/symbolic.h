/* Symbolic dimensions, as TensorRT hands them to getOutputShapes: expressions over named sizes, to be evaluated. */
#ifndef SDST_CONTRACT_SYMBOLIC_H
#define SDST_CONTRACT_SYMBOLIC_H

#include <NvInferRuntime.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <vector>

namespace contract {

using Numbers = std::map<char, int64_t>;  // the number behind each letter
using Evaluate = std::function<int64_t(const Numbers&)>;

class Expression final : public nvinfer1::IDimensionExpr {
  public:
    Expression(bool constant, Evaluate evaluate) : impl_(constant, std::move(evaluate)) { mImpl = &impl_; }
    ~Expression() noexcept override = default;

    int64_t operator()(const Numbers& numbers) const { return impl_.evaluate(numbers); }

  private:
    struct Impl final : nvinfer1::apiv::VDimensionExpr {
        Impl(bool is_constant, Evaluate how) : constant(is_constant), evaluate(std::move(how)) {}
        bool isConstant() const override { return constant; }
        int64_t getConstantValue() const override {
            return constant ? evaluate({}) : std::numeric_limits<int64_t>::min();
        }
        bool isSizeTensor() const override { return false; }

        bool constant;
        Evaluate evaluate;
    };
    Impl impl_;
};

class ExpressionBuilder final : public nvinfer1::IExprBuilder {
  public:
    ExpressionBuilder() { mImpl = &impl_; }
    ~ExpressionBuilder() noexcept override = default;

    const nvinfer1::IDimensionExpr* size(char letter) {
        return impl_.keep(false, [letter](const Numbers& numbers) { return numbers.at(letter); });
    }

  private:
    struct Impl final : nvinfer1::apiv::VExprBuilder {
        const nvinfer1::IDimensionExpr* keep(bool is_constant, Evaluate evaluate) {
            kept.push_back(std::make_unique<Expression>(is_constant, std::move(evaluate)));
            return kept.back().get();
        }
        const nvinfer1::IDimensionExpr* constant(int64_t number) override {
            return keep(true, [number](const Numbers&) { return number; });
        }
        const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                                  const nvinfer1::IDimensionExpr& first,
                                                  const nvinfer1::IDimensionExpr& second) override {
            const auto& a = static_cast<const Expression&>(first);
            const auto& b = static_cast<const Expression&>(second);
            return keep(first.isConstant() && second.isConstant(), [operation, &a, &b](const Numbers& numbers) {
                return apply(operation, a(numbers), b(numbers));
            });
        }
        const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                          const nvinfer1::IDimensionExpr&) override {
            return nullptr;  // the op has no output whose size depends on data
        }

        std::vector<std::unique_ptr<Expression>> kept;
    };

    static int64_t apply(nvinfer1::DimensionOperation operation, int64_t a, int64_t b) {
        using nvinfer1::DimensionOperation;
        switch (operation) {
            case DimensionOperation::kSUM: return a + b;
            case DimensionOperation::kPROD: return a * b;
            case DimensionOperation::kMAX: return a > b ? a : b;
            case DimensionOperation::kMIN: return a < b ? a : b;
            case DimensionOperation::kSUB: return a - b;
            case DimensionOperation::kEQUAL: return a == b ? 1 : 0;
            case DimensionOperation::kLESS: return a < b ? 1 : 0;
            case DimensionOperation::kFLOOR_DIV: return a / b;
            case DimensionOperation::kCEIL_DIV: return (a + b - 1) / b;
        }
        return std::numeric_limits<int64_t>::min();
    }

    Impl impl_;
};

}  // namespace contract

#endif
