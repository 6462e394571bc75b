/* Reading of the text engine (plan.h), and arithmetic on its shapes. */
#include "plan.h"

#include <cstdio>
#include <sstream>
#include <stdexcept>

namespace sdst_mock {
namespace {
using Words = std::vector<std::string>;

struct TypeRow {
    DataType type;
    const char* name;
    int64_t bytes;
};

constexpr TypeRow TYPES[] = {
    {DataType::kFLOAT, "float", 4}, {DataType::kHALF, "half", 2},   {DataType::kBF16, "bfloat16", 2},
    {DataType::kINT32, "int32", 4}, {DataType::kINT64, "int64", 8}, {DataType::kINT8, "int8", 1},
    {DataType::kUINT8, "uint8", 1}, {DataType::kBOOL, "bool", 1},
};

constexpr char MAGIC[] = "sdst-mock-engine 1\n";
constexpr char SEAL[] = "\nadler32 ";

const TypeRow& type_row(DataType type) {
    for (const TypeRow& row : TYPES)
        if (row.type == type) return row;
    throw std::runtime_error("a tensor has a type that the mock does not know");
}

DataType parse_type(const std::string& word) {
    for (const TypeRow& row : TYPES)
        if (word == row.name) return row.type;
    throw std::runtime_error("unknown type " + word);
}

uint32_t adler32(const std::string& text) {
    uint32_t low = 1, high = 0;
    for (const unsigned char byte : text) {
        low = (low + byte) % 65521;
        high = (high + low) % 65521;
    }
    return high << 16 | low;
}

// The statements between the magic line and the seal.
std::string unsealed(const std::string& text) {
    if (text.rfind(MAGIC, 0) != 0)
        throw std::runtime_error("expected an engine of the mock, which begins with sdst-mock-engine 1");
    const size_t seal = text.rfind(SEAL);
    if (seal == std::string::npos) throw std::runtime_error("the engine is truncated: it has no checksum");
    const std::string sealed = text.substr(0, seal + 1);
    char expected[16];
    std::snprintf(expected, sizeof(expected), "%08x\n", adler32(sealed));
    if (text.substr(seal + sizeof(SEAL) - 1) != expected)
        throw std::runtime_error("the engine is truncated or altered: its checksum does not fit");
    return sealed.substr(sizeof(MAGIC) - 1);
}

Words split_words(const std::string& line) {
    std::istringstream stream(line);
    Words words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

Dims parse_dims(Words::const_iterator begin, Words::const_iterator end) {
    if (end - begin > Dims::MAX_DIMS) throw std::runtime_error("too many dimensions");
    Dims dims{};
    for (; begin != end; ++begin) dims.d[dims.nbDims++] = std::stoll(*begin);
    return dims;
}

Dimension parse_dimension(const std::string& word) {
    const size_t colon = word.rfind(':');
    if (colon == std::string::npos) return {std::stoll(word), "", 0};
    return {-1, word.substr(0, colon), std::stoi(word.substr(colon + 1))};
}

Role parse_role(const std::string& word) {
    if (word == "input") return Role::INPUT;
    if (word == "output") return Role::OUTPUT;
    if (word == "internal") return Role::INTERNAL;
    throw std::runtime_error("unknown kind of tensor " + word);
}

class Parser {
  public:
    Plan parse(std::string text) {
        std::istringstream lines(unsealed(text));
        for (std::string line; std::getline(lines, line);) read_statement(line);
        if (plan_.profiles.empty()) plan_.profiles.emplace_back();
        for (Profile& profile : plan_.profiles) complete(profile);
        check_names();
        plan_.text = std::move(text);
        return std::move(plan_);
    }

  private:
    void read_statement(const std::string& line) {
        try {
            const Words words = split_words(line);
            read_words(words.at(0), words);
        } catch (const std::exception& error) {
            throw std::runtime_error("the engine's line '" + line + "' cannot be read: " + error.what());
        }
    }

    void read_words(const std::string& kind, const Words& words) {
        const Words rest(words.begin() + 1, words.end());
        if (kind == "tensor")
            read_tensor(rest);
        else if (kind == "profile")
            plan_.profiles.emplace_back();
        else if (kind == "shape")
            read_shape(rest);
        else if (kind == "node")
            plan_.nodes.push_back({rest.at(0), rest.at(1), rest.at(2), rest.at(3), {}, {}, {}});
        else if (kind == "field")
            node().fields.emplace_back(rest.at(0), std::stoi(rest.at(1)));
        else if (kind == "reads")
            node().reads = rest;
        else if (kind == "writes")
            node().writes = rest;
        else if (kind == "note")
            return;
        else
            throw std::runtime_error("unknown statement");
    }

    void read_tensor(const Words& words) {
        Tensor tensor{words.at(0), parse_role(words.at(1)), parse_type(words.at(2)), {}};
        for (size_t i = 3; i < words.size(); ++i) tensor.dimensions.push_back(parse_dimension(words[i]));
        if (tensor.dimensions.size() > Dims::MAX_DIMS) throw std::runtime_error("too many dimensions");
        plan_.tensors.push_back(tensor);
    }

    void read_shape(const Words& words) {
        if (plan_.profiles.empty()) throw std::runtime_error("a shape outside a profile");
        const size_t rank = (words.size() - 3) / 3;
        const auto begin = words.begin() + 1;
        if (words.size() != 3 * rank + 3 || words.at(1 + rank) != "|" || words.at(2 + 2 * rank) != "|")
            throw std::runtime_error("expected minimum | optimum | maximum of one rank");
        plan_.profiles.back()[words.at(0)] = {parse_dims(begin, begin + rank),
                                              parse_dims(begin + rank + 1, begin + 2 * rank + 1),
                                              parse_dims(begin + 2 * rank + 2, words.end())};
    }

    Node& node() {
        if (plan_.nodes.empty()) throw std::runtime_error("a node's line outside a node");
        return plan_.nodes.back();
    }

    void complete(Profile& profile) const {
        for (const Tensor& tensor : plan_.tensors) {
            const Dims dims = declared_dims(tensor);
            if (tensor.role == Role::INPUT && is_complete(dims))
                profile[tensor.name] = {dims, dims, dims};
            else if (tensor.role == Role::INPUT && profile[tensor.name].max.nbDims != dims.nbDims)
                throw std::runtime_error("a profile of the engine lacks the shape of " + tensor.name);
        }
    }

    void check_names() const {
        for (const Node& node : plan_.nodes)
            for (const Words* names : {&node.reads, &node.writes})
                for (const std::string& name : *names)
                    if (plan_.find(name) == nullptr)
                        throw std::runtime_error("node " + node.name + " names tensor " + name +
                                                 ", which is not there");
        for (const Tensor& tensor : plan_.tensors)
            for (const Dimension& dimension : tensor.dimensions)
                if (!dimension.input.empty() && !is_axis_of_input(dimension))
                    throw std::runtime_error("tensor " + tensor.name + " has a dimension of no input's axis");
    }

    bool is_axis_of_input(const Dimension& dimension) const {
        const Tensor* input = plan_.find(dimension.input);
        return input != nullptr && input->role == Role::INPUT && dimension.axis >= 0 &&
               static_cast<size_t>(dimension.axis) < input->dimensions.size();
    }

    Plan plan_;
};
}  // namespace

const Tensor* Plan::find(const std::string& name) const {
    for (const Tensor& tensor : tensors)
        if (tensor.name == name) return &tensor;
    return nullptr;
}

const Tensor* Plan::find_visible(const std::string& name) const {
    const Tensor* const tensor = find(name);
    return tensor != nullptr && tensor->role != Role::INTERNAL ? tensor : nullptr;
}

std::vector<const Tensor*> Plan::visible() const {
    std::vector<const Tensor*> result;
    for (const Tensor& tensor : tensors)
        if (tensor.role != Role::INTERNAL) result.push_back(&tensor);
    return result;
}

std::string rebuilt_text(const std::string& text, const std::vector<Profile>& profiles,
                         const std::vector<std::string>& notes) {
    const auto words = [](const Dims& dims) {
        std::string line;
        for (int32_t i = 0; i < dims.nbDims; ++i) line += " " + std::to_string(dims.d[i]);
        return line;
    };
    std::string result = MAGIC;
    std::istringstream lines(unsealed(text));
    for (std::string line; std::getline(lines, line);)
        if (line.rfind("profile", 0) != 0 && line.rfind("shape ", 0) != 0) result += line + "\n";
    for (const Profile& profile : profiles) {
        result += "profile\n";
        for (const auto& [name, range] : profile)
            result += "shape " + name + words(range.min) + " |" + words(range.opt) + " |" + words(range.max) + "\n";
    }
    for (const std::string& note : notes) result += "note " + note + "\n";
    char seal[32];
    std::snprintf(seal, sizeof(seal), "adler32 %08x\n", adler32(result));
    return result + seal;
}

Plan parse_plan(std::string text) { return Parser().parse(std::move(text)); }

Dims declared_dims(const Tensor& tensor) {
    Dims dims{};
    for (const Dimension& dimension : tensor.dimensions) dims.d[dims.nbDims++] = dimension.size;
    return dims;
}

Dims resolved_dims(const Tensor& tensor, const std::function<Dims(const std::string&)>& input_dims) {
    if (tensor.role == Role::INPUT) return input_dims(tensor.name);
    Dims dims = declared_dims(tensor);
    for (int32_t i = 0; i < dims.nbDims; ++i)
        if (const Dimension& dimension = tensor.dimensions[i]; !dimension.input.empty())
            dims.d[i] = input_dims(dimension.input).d[dimension.axis];
    return dims;
}

bool is_complete(const Dims& dims) {
    for (int32_t i = 0; i < dims.nbDims; ++i)
        if (dims.d[i] < 0) return false;
    return true;
}

int64_t elements(const Dims& dims) {
    int64_t count = 1;
    for (int32_t i = 0; i < dims.nbDims; ++i) count *= dims.d[i];
    return count;
}

int64_t element_bytes(DataType type) { return type_row(type).bytes; }

const char* type_name(DataType type) { return type_row(type).name; }

std::string to_text(const Dims& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
    return text + "]";
}
}  // namespace sdst_mock
