#include "error.h"

#include <algorithm>
#include <cstring>

#include "sdst/rdsa.h"

namespace {
thread_local char last_error[512] = "";  // a fixed place: keeping a failure must not fail itself
}

int sdst::fail(int status, std::string_view message) noexcept {
    const size_t length = std::min(message.size(), sizeof last_error - 1);
    std::memcpy(last_error, message.data(), length);
    last_error[length] = '\0';
    return status;
}

const char* sdst_last_error(void) { return last_error; }
