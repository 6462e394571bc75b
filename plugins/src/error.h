/* The calling thread's last failure, as sdst_last_error returns it. */
#ifndef SDST_ERROR_H
#define SDST_ERROR_H

#include <string>

namespace sdst {

/* Keeps the message for sdst_last_error and returns the status. */
int fail(int status, const std::string& message) noexcept;

}  // namespace sdst

#endif
