/* Network, configuration and builder of the mock. The plan that it builds is the network's text with the profiles of
 * the configuration, and a note for each thing that it was asked for. */
#include "builder.h"

#include <stdexcept>

#include "engine.h"

namespace sdst_mock {
using namespace nvinfer1;

class Layer final : public IPluginV3Layer, public UnmockedLayer {
  public:
    explicit Layer(const Node& node) : name_(node.name), is_copy_(node.is_copy()) { mLayer = this; }
    LayerType getType() const noexcept override { return is_copy_ ? LayerType::kIDENTITY : LayerType::kPLUGIN_V3; }
    const char* getName() const noexcept override { return name_.c_str(); }

  private:
    std::string name_;
    bool is_copy_;
};

namespace {
constexpr int32_t STEPS = 20;                     // of a build, as its progress monitor sees it
constexpr char TIMINGS[] = "sdst-mock-timings ";  // what a timing cache begins with; then the number of builds

class TimingCache final : public ITimingCache, public UnmockedTimingCache {
  public:
    explicit TimingCache(std::string bytes) : bytes_(std::move(bytes)) { mImpl = this; }
    IHostMemory* serialize() const noexcept override { return make_host_memory(bytes_); }
    bool fits() const { return bytes_.empty() || bytes_.rfind(TIMINGS, 0) == 0; }
    void count_build() {
        const int builds = bytes_.empty() ? 0 : std::stoi(bytes_.substr(sizeof(TIMINGS) - 1));
        bytes_ = TIMINGS + std::to_string(builds + 1);
    }

  private:
    std::string bytes_;
};

class ShapeProfile final : public IOptimizationProfile, public UnmockedOptimizationProfile {
  public:
    ShapeProfile() { mImpl = this; }
    bool setDimensions(const char* input, OptProfileSelector select, const Dims& dims) noexcept override {
        Range& range = profile_[input];
        (select == OptProfileSelector::kMIN   ? range.min
         : select == OptProfileSelector::kOPT ? range.opt
                                              : range.max) = dims;
        return true;
    }
    const Profile& profile() const { return profile_; }

  private:
    Profile profile_;
};

class Config final : public IBuilderConfig, public UnmockedBuilderConfig {
  public:
    Config() { mImpl = this; }
    void setMemoryPoolLimit(MemoryPoolType pool, std::size_t bytes) noexcept override {
        note("pool " + std::to_string(static_cast<int32_t>(pool)) + " " + std::to_string(bytes));
    }
    void setBuilderOptimizationLevel(int32_t level) noexcept override { note("level " + std::to_string(level)); }
    void setProfilingVerbosity(ProfilingVerbosity verbosity) noexcept override {
        note(verbosity == ProfilingVerbosity::kDETAILED ? "detailed" : "not detailed");
    }
    void setFlag(BuilderFlag flag) noexcept override {
        note(flag == BuilderFlag::kVERSION_COMPATIBLE ? "version compatible" : "another flag");
    }
    void clearFlag(BuilderFlag flag) noexcept override {
        note(flag == BuilderFlag::kTF32 ? "no tf32" : "another flag off");
    }
    void setHardwareCompatibilityLevel(HardwareCompatibilityLevel level) noexcept override {
        note(level == HardwareCompatibilityLevel::kAMPERE_PLUS ? "ampere plus" : "another hardware level");
    }
    void setPluginsToSerialize(const char* const* paths, int32_t count) noexcept override {
        for (int32_t i = 0; i < count; ++i) note(std::string("serializes ") + paths[i]);
    }
    void setProgressMonitor(IProgressMonitor* monitor) noexcept override { monitor_ = monitor; }
    IProgressMonitor* getProgressMonitor() const noexcept override { return monitor_; }
    ITimingCache* createTimingCache(const void* blob, std::size_t size) const noexcept override {
        const std::string bytes(static_cast<const char*>(blob), size);
        return bytes == "damaged" ? nullptr : new TimingCache(bytes);
    }
    bool setTimingCache(const ITimingCache& cache, bool) noexcept override {
        auto& given = static_cast<TimingCache&>(const_cast<ITimingCache&>(cache));
        if (!given.fits()) return false;
        timings_ = &given;
        return true;
    }
    const ITimingCache* getTimingCache() const noexcept override { return timings_; }
    int32_t addOptimizationProfile(const IOptimizationProfile* profile) noexcept override {
        profiles.push_back(static_cast<const ShapeProfile*>(profile)->profile());
        return static_cast<int32_t>(profiles.size()) - 1;
    }
    void count_build() const {
        if (timings_ != nullptr) timings_->count_build();
    }

    std::vector<Profile> profiles;
    std::vector<std::string> notes;

  private:
    void note(const std::string& words) { notes.push_back(words); }

    IProgressMonitor* monitor_{nullptr};
    TimingCache* timings_{nullptr};
};

class Builder final : public IBuilder, public UnmockedBuilder {
  public:
    explicit Builder(ILogger& logger) : logger_(logger) { mImpl = this; }
    INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags flags) noexcept override {
        if (is_strongly_typed(flags)) return new Network();
        log_error(logger_, "createNetworkV2: the mock makes strongly typed networks only");
        return nullptr;
    }
    IBuilderConfig* createBuilderConfig() noexcept override { return new Config(); }
    IOptimizationProfile* createOptimizationProfile() noexcept override {
        profiles_.push_back(std::make_unique<ShapeProfile>());
        return profiles_.back().get();
    }
    IHostMemory* buildSerializedNetwork(INetworkDefinition& network, IBuilderConfig& config) noexcept override {
        try {
            return make_host_memory(build(static_cast<Network&>(network), static_cast<Config&>(config)));
        } catch (const std::exception& error) {
            log_error(logger_, std::string("buildSerializedNetwork: ") + error.what());
            return nullptr;
        }
    }

  private:
    static bool is_strongly_typed(NetworkDefinitionCreationFlags flags) {
#if NV_TENSORRT_MAJOR < 11
        return (flags >> static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED) & 1U) != 0;
#else
        static_cast<void>(flags);  // all networks are
        return true;
#endif
    }

    static std::string build(const Network& network, const Config& config) {
        if (!ran_through(config.getProgressMonitor())) throw std::runtime_error("the build was cancelled");
        const std::string text = rebuilt_text(network.text(), config.profiles, config.notes);
        parse_plan(text);
        config.count_build();
        return text;
    }

    static bool ran_through(IProgressMonitor* monitor) {
        if (monitor == nullptr) return true;
        monitor->phaseStart("Building", nullptr, STEPS);
        monitor->phaseStart("Timing", "Building", STEPS);
        bool goes_on = true;
        for (int32_t step = 0; goes_on && step < STEPS; ++step)
            goes_on = monitor->stepComplete("Timing", step) && monitor->stepComplete("Building", step);
        monitor->phaseFinish("Timing");
        monitor->phaseFinish("Building");
        return goes_on;
    }

    ILogger& logger_;
    std::vector<std::unique_ptr<ShapeProfile>> profiles_;
};
}  // namespace

Network::Network() { mImpl = this; }

Network::~Network() noexcept = default;

void Network::take(const std::string& text) {
    const Plan plan = parse_plan(text);
    text_ = text;
    for (const Node& node : plan.nodes) layers_.push_back(std::make_unique<Layer>(node));
}

int32_t Network::getNbLayers() const noexcept { return static_cast<int32_t>(layers_.size()); }

ILayer* Network::getLayer(int32_t index) const noexcept {
    return index >= 0 && index < getNbLayers() ? layers_[index].get() : nullptr;
}

void* make_builder(ILogger& logger) {
    IBuilder* const builder = new Builder(logger);
    return builder;
}
}  // namespace sdst_mock
