#include "rdsa_creator.h"

#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "error.h"
#include "rdsa_limits.h"
#include "sdst/rdsa.h"

namespace sdst {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;

int bad(const std::string& field, const std::string& expected, const std::string& got) {
    return fail(SDST_BAD_ARGUMENT, "RDSA: field " + field + ": expected " + expected + ", got " + got);
}

int find(const PluginFieldCollection& fields, const char* name, const PluginField*& found) {
    found = nullptr;
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        if (field.name == nullptr || std::strcmp(field.name, name) != 0) continue;
        if (found != nullptr) return bad(name, "one", "two");
        found = &field;
    }
    return found != nullptr ? SDST_OK : bad(name, "one", "none");
}

int read(const PluginFieldCollection& fields, const char* name, int32_t most, int32_t& number) {
    const PluginField* field = nullptr;
    if (const int status = find(fields, name, field)) return status;
    if (field->type != nvinfer1::PluginFieldType::kINT32 || field->length != 1 || field->data == nullptr) {
        return bad(name, "one INT32 number",
                   field->data == nullptr ? "no data"
                                          : std::to_string(field->length) + " of PluginFieldType " +
                                                std::to_string(static_cast<int32_t>(field->type)));
    }
    std::memcpy(&number, field->data, sizeof number);  // in a plan it need not be aligned
    if (number < 1 || number > most) return bad(name, "1 to " + std::to_string(most), std::to_string(number));
    return SDST_OK;
}

int read(const PluginFieldCollection* fields, Attributes& attributes) {
    if (fields == nullptr) return bad("collection", "one", "null");
    if (const int status = read(*fields, NUM_HEADS_FIELD, MOST_HEADS, attributes.num_heads)) return status;
    return read(*fields, NUM_POINTS_FIELD, MOST_POINTS, attributes.num_points);
}

}  // namespace

nvinfer1::IPluginV3* RdsaCreator::createPlugin(const char*, const PluginFieldCollection* fields,
                                               nvinfer1::TensorRTPhase) noexcept {
    try {
        Attributes attributes = {};
        if (read(fields, attributes) != SDST_OK) return nullptr;
        return new RdsaPlugin(attributes);
    } catch (const std::exception&) {  // out of memory; exceptions must not cross into TensorRT
        return nullptr;
    }
}

}  // namespace sdst
