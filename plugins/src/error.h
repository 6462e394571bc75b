/* The calling thread's last failure, as sdst_last_error returns it. */
#ifndef SDST_ERROR_H
#define SDST_ERROR_H

#include <string_view>

namespace sdst {

/* Keeps the message for sdst_last_error and returns the status. */
int fail(int status, std::string_view message) noexcept;

}  // namespace sdst

#endif
