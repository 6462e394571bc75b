/* Grounds one sentence in one video with TensorRT engines, without Python.
 *
 *     ground PROJECTION.plan HEAD.plan PLUGIN.so VIDEO.safetensors TEXT.safetensors
 *
 * The engines are those of `sdst build`, the library that of `sdst plugins build`, the features those of `sdst
 * features` (DIR/video/ID.safetensors and DIR/text/DIGEST.safetensors). Prints a moment a line, the best first: start
 * and end in seconds, score; before them, of a head that predicts it, a line "presence P": how likely the video shows
 * it at all, as the model gives it (scores.json of a bundle is not read). Longer videos than the engines' profiles hold
 * are refused; Python cuts them into windows.
 *
 *     c++ -std=c++17 -I TENSORRT/include -I CUDA/include ground.cpp -L TENSORRT/lib -L CUDA/lib64 -lnvinfer -lcudart
 *
 * Shapes: B 1, T clips, K layers, V video width, F width of the head, L tokens, X text width, M moments. Nothing here
 * compares versions, digests or the GPU with what the engines were built for: TensorRTSession does.
 */
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::OptProfileSelector;

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, const nvinfer1::AsciiChar* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
    }
};

void require(bool holds, const std::string& otherwise) {
    if (!holds) throw std::runtime_error(otherwise);
}

void require_cuda(cudaError_t status, const char* call) {
    require(status == cudaSuccess, std::string(call) + ": " + cudaGetErrorString(status));
}

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    require(file && !bytes.empty(), path + ": cannot be read, or is empty");
    return bytes;
}

// ---------------------------------------------------------------- feature files

struct Features {
    std::vector<int64_t> shape;  // T K V of a video, K L X of a sentence
    std::vector<float> values;
    std::string facts;  // of the file's header: the contract, of a video also its duration
};

// What follows `key` in a text of JSON. Throws std::runtime_error, naming the file, when the key is not there.
const char* after(const std::string& text, const std::string& key, const std::string& path) {
    const size_t found = text.find(key);
    require(found != std::string::npos,
            path + ": expected " + key + " in the header of a feature file; extract it again");
    return text.c_str() + found + key.size();
}

float from_half(uint16_t half) {
    const int exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
    const float size = exponent == 0x1F ? (fraction == 0 ? INFINITY : NAN)
                       : exponent == 0  ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25);
    return (half & 0x8000) == 0 ? size : -size;
}

// The array "features" of a safetensors file: 8 bytes with the header's length, the header, which is JSON, the numbers.
Features read_features(const std::string& path) {
    const std::string bytes = read_file(path);
    uint64_t header_bytes = 0;
    require(bytes.size() > sizeof header_bytes, path + ": too short for a feature file");
    std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
    require(header_bytes <= bytes.size() - sizeof header_bytes, path + ": cut short, or no feature file");
    std::string header = bytes.substr(sizeof header_bytes, header_bytes);
    const std::string stored = after(header, "\"features\":{", path);
    const bool half = stored.find("\"dtype\":\"F16\"") != std::string::npos;
    require(half || stored.find("\"dtype\":\"F32\"") != std::string::npos, path + ": expected features of F32 or F16");

    Features features;
    const char* next = after(stored, "\"shape\":[", path);
    for (char* end = nullptr; *next != ']' && features.shape.size() < 3; next = *end == ',' ? end + 1 : end)
        features.shape.push_back(std::strtoll(next, &end, 10));
    require(*next == ']' && features.shape.size() == 3, path + ": expected features of three dimensions");
    uint64_t count = 1;
    for (const int64_t size : features.shape) {
        require(size > 0 && size < 1 << 20, path + ": expected sizes from 1 to 1048575, got " + std::to_string(size));
        count *= static_cast<uint64_t>(size);
    }
    const size_t start = sizeof header_bytes + header_bytes, width = half ? sizeof(uint16_t) : sizeof(float);
    require(bytes.size() - start == count * width, path + ": its size is not that of its shape; extract it again");
    features.values.resize(count);
    if (half) {
        std::vector<uint16_t> halves(count);
        std::memcpy(halves.data(), bytes.data() + start, count * width);
        std::transform(halves.begin(), halves.end(), features.values.begin(), from_half);
    } else {
        std::memcpy(features.values.data(), bytes.data() + start, count * width);
    }
    require(
        std::all_of(features.values.begin(), features.values.end(), [](float value) { return std::isfinite(value); }),
        path + ": holds NaN or infinity; extract it again");
    header.erase(std::remove(header.begin(), header.end(), '\\'), header.end());  // JSON in JSON in JSON
    features.facts = header;
    return features;
}

// Only the last `layers` along an axis, which is what the models take.
void keep_last(Features& features, size_t axis, int64_t layers, const std::string& path) {
    const int64_t stored = features.shape[axis];
    require(layers > 0 && layers <= stored, path + ": expected " + std::to_string(layers) + " layers or more, got " +
                                                std::to_string(stored) + "; extract it again");
    int64_t inner = 1;
    for (size_t i = axis + 1; i < 3; ++i) inner *= features.shape[i];
    std::vector<float> kept;
    for (size_t block = 0; block < features.values.size(); block += stored * inner) {
        const auto begin = features.values.begin() + block;
        kept.insert(kept.end(), begin + (stored - layers) * inner, begin + stored * inner);
    }
    features.values = std::move(kept);
    features.shape[axis] = layers;
}

// The contract that features were made under, as text.
std::string contract(const Features& features, const std::string& path) {
    const std::string from = after(features.facts, "\"spec\": ", path);
    return from.substr(0, from.find('}'));
}

// ---------------------------------------------------------------- engines

struct Stream {
    cudaStream_t stream{};
    Stream() { require_cuda(cudaStreamCreate(&stream), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(stream); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
};

struct DeviceTensor {
    DataType type;
    Dims dims;
    std::shared_ptr<void> memory;  // on the GPU
};
using DeviceTensors = std::map<std::string, DeviceTensor>;

size_t bytes_of(DataType type, const Dims& dims) {
    const size_t width = type == DataType::kBOOL ? 1 : type == DataType::kHALF ? 2 : 4;
    require(width != 4 || type == DataType::kFLOAT, "expected tensors of float, half and bool; export the model again");
    return std::accumulate(dims.d, dims.d + dims.nbDims, width, [](size_t all, int64_t size) { return all * size; });
}

DeviceTensor allocate(DataType type, const Dims& dims) {
    void* memory = nullptr;
    require_cuda(cudaMalloc(&memory, bytes_of(type, dims)), "cudaMalloc");
    return {type, dims, std::shared_ptr<void>(memory, [](void* own) { cudaFree(own); })};
}

DeviceTensor upload(DataType type, std::initializer_list<int64_t> sizes, const void* values) {
    Dims dims{};
    for (const int64_t size : sizes) dims.d[dims.nbDims++] = size;
    DeviceTensor tensor = allocate(type, dims);
    require_cuda(cudaMemcpy(tensor.memory.get(), values, bytes_of(type, dims), cudaMemcpyHostToDevice), "cudaMemcpy");
    return tensor;
}

std::vector<float> download(const DeviceTensor& tensor, const std::string& name) {
    require(tensor.type == DataType::kFLOAT, "expected output " + name + " in float32; export the model again");
    std::vector<float> values(bytes_of(tensor.type, tensor.dims) / sizeof(float));
    require_cuda(cudaMemcpy(values.data(), tensor.memory.get(), values.size() * sizeof(float), cudaMemcpyDeviceToHost),
                 "cudaMemcpy");
    return values;
}

std::string text_of(const Dims& dims) {
    std::string text;
    for (int32_t i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : " ") + std::to_string(dims.d[i]);
    return "[" + text + "]";
}

class Model {
  public:
    Model(nvinfer1::IRuntime& runtime, const std::string& path) : path_(path) {
        const std::string plan = read_file(path);
        engine_.reset(runtime.deserializeCudaEngine(plan.data(), plan.size()));
        require(engine_ != nullptr, path + ": TensorRT cannot load it; build it here with  sdst build");
        context_.reset(engine_->createExecutionContext());
        require(context_ != nullptr, path + ": TensorRT made no execution context; is there memory?");
    }

    // The size of an axis of an input, -1 for any. Throws std::runtime_error when the engine has no such input.
    int64_t size(const char* input, int32_t axis) const {
        const Dims dims = engine_->getTensorShape(input);
        require(dims.nbDims > axis, path_ + ": has no input " + input + "; give PROJECTION.plan first, then HEAD.plan");
        return dims.d[axis];
    }

    // All outputs, once `stream` has come so far. Throws std::runtime_error when no profile holds the shapes.
    DeviceTensors run(const DeviceTensors& inputs, cudaStream_t stream) {
        require(context_->setOptimizationProfileAsync(profile_of(inputs), stream), path_ + ": its profile was refused");
        DeviceTensors outputs;
        std::vector<const char*> names;
        for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) names.push_back(engine_->getIOTensorName(i));
        for (const char* name : names)
            if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) {
                require(inputs.count(name) == 1, path_ + ": has an input " + name + ", which no head of SDST has");
                const DeviceTensor& given = inputs.at(name);
                require(engine_->getTensorDataType(name) == given.type,
                        path_ + ": another type is expected as " + name);
                require(context_->setInputShape(name, given.dims), path_ + ": the shape of " + name + " was refused");
                require(context_->setTensorAddress(name, given.memory.get()), path_ + ": no address for " + name);
            }
        for (const char* name : names)
            if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT) {
                outputs[name] = allocate(engine_->getTensorDataType(name), context_->getTensorShape(name));
                require(context_->setTensorAddress(name, outputs[name].memory.get()),
                        path_ + ": no address for " + name);
            }
        require(context_->enqueueV3(stream), path_ + ": TensorRT did not run it");
        return outputs;
    }

  private:
    // The first profile that holds the shapes, which is the smallest: a plan of `sdst build` has them in order of size.
    int32_t profile_of(const DeviceTensors& inputs) const {
        for (int32_t profile = 0; profile < engine_->getNbOptimizationProfiles(); ++profile)
            if (std::all_of(inputs.begin(), inputs.end(), [&](const auto& input) { return holds(profile, input); }))
                return profile;
        std::string shapes;
        for (const auto& [name, tensor] : inputs) shapes += " " + name + " " + text_of(tensor.dims);
        throw std::runtime_error(path_ + ": no profile of the engine holds" + shapes +
                                 "; build it with other --profiles");
    }

    bool holds(int32_t profile, const DeviceTensors::value_type& input) const {
        const auto& [name, tensor] = input;
        const Dims least = engine_->getProfileShape(name.c_str(), profile, OptProfileSelector::kMIN);
        const Dims most = engine_->getProfileShape(name.c_str(), profile, OptProfileSelector::kMAX);
        if (least.nbDims != tensor.dims.nbDims) return false;
        for (int32_t i = 0; i < least.nbDims; ++i)
            if (tensor.dims.d[i] < least.d[i] || tensor.dims.d[i] > most.d[i]) return false;
        return true;
    }

    std::string path_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;  // goes before its engine
};

// ---------------------------------------------------------------- from features to moments

struct Moment {
    double start_s, end_s;
    float score;
};

constexpr const char* NOT_FINITE =
    "the head's output holds NaN or infinity; the precision is too small for the model: export it in fp32";

// Spans M 2 are fractions of the video's clips. As sdst_runtime.grounding.decode: in seconds, within the video, the
// highest score first.
std::vector<Moment> decode(const std::vector<float>& spans, const std::vector<float>& scores, double clips_s,
                           double duration_s) {
    const auto seconds = [&](float fraction) { return std::clamp(fraction * clips_s, 0.0, duration_s); };
    std::vector<Moment> moments;
    for (size_t m = 0; m < scores.size(); ++m) {
        require(std::isfinite(spans.at(2 * m)) && std::isfinite(spans.at(2 * m + 1)) && std::isfinite(scores[m]),
                NOT_FINITE);
        moments.push_back({seconds(spans[2 * m]), seconds(spans[2 * m + 1]), scores[m]});
    }
    std::stable_sort(moments.begin(), moments.end(),
                     [](const Moment& a, const Moment& b) { return a.score > b.score; });
    return moments;
}

struct Answer {
    std::vector<Moment> moments;
    std::vector<float> presence;  // one number, or none of a head without it
};

Answer ground(const char* const* paths) {
    const std::string video_path = paths[3], text_path = paths[4];
    Features video = read_features(video_path), text = read_features(text_path);
    require(contract(video, video_path) == contract(text, text_path),
            video_path + " and " + text_path + ": made under two contracts; extract both with one");
    const double duration_s = std::strtod(after(video.facts, "\"duration_s\": \"", video_path), nullptr);
    const double clip_s = std::strtod(after(video.facts, "\"clip_s\": ", video_path), nullptr);
    require(std::isfinite(duration_s) && duration_s > 0 && std::isfinite(clip_s) && clip_s > 0,
            video_path + ": expected its duration and the length of a clip in seconds; extract it again");

    static Logger logger;  // TensorRT keeps it for the whole process
    const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    require(runtime != nullptr, "TensorRT made no runtime: is there a GPU with its driver?");
    require(runtime->getPluginRegistry().loadLibrary(paths[2]) != nullptr,
            std::string(paths[2]) + ": TensorRT cannot use it; build it here with  sdst plugins build --tensorrt DIR");
    Model projection(*runtime, paths[0]), head(*runtime, paths[1]);
    keep_last(video, 1, projection.size("video", 2), video_path);
    keep_last(text, 0, head.size("text", 1), text_path);

    const int64_t T = video.shape[0], K = video.shape[1], V = video.shape[2], L = text.shape[1], X = text.shape[2];
    const std::vector<char> all_valid(std::max(T, L), 1);
    const DeviceTensor video_mask = upload(DataType::kBOOL, {1, T}, all_valid.data());
    const Stream own_stream;
    const cudaStream_t stream = own_stream.stream;
    const DeviceTensors seen{{"video", upload(DataType::kFLOAT, {1, T, K, V}, video.values.data())},
                             {"video_mask", video_mask}};
    const DeviceTensors projected = projection.run(seen, stream);  // of a video once, however many sentences follow
    const DeviceTensors asked{{"projected", projected.at("projected")},
                              {"video_mask", video_mask},
                              {"text", upload(DataType::kFLOAT, {1, text.shape[0], L, X}, text.values.data())},
                              {"text_mask", upload(DataType::kBOOL, {1, L}, all_valid.data())}};
    const DeviceTensors outputs = head.run(asked, stream);
    require_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    Answer answer;
    if (outputs.count("presence") == 1) answer.presence = download(outputs.at("presence"), "presence");
    require(std::all_of(answer.presence.begin(), answer.presence.end(), [](float p) { return std::isfinite(p); }),
            NOT_FINITE);
    answer.moments = decode(download(outputs.at("spans"), "spans"), download(outputs.at("scores"), "scores"),
                            static_cast<double>(T) * clip_s, duration_s);
    return answer;
}
}  // namespace

int main(int count, char** arguments) {
    try {
        require(count == 6, "expected PROJECTION.plan HEAD.plan PLUGIN.so VIDEO.safetensors TEXT.safetensors");
        const Answer answer = ground(arguments + 1);
        for (const float presence : answer.presence) std::printf("presence %.6g\n", presence);
        for (const Moment& moment : answer.moments)
            std::printf("%.2f %.2f %.6g\n", moment.start_s, moment.end_s, moment.score);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
