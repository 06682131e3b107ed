// Errors as a user reads them: the op's name, then what came and what is accepted. torch's own macros begin with the
// file and function of whoever compiled them.
#pragma once

#include <sstream>
#include <stdexcept>

namespace wat {

template <typename... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace wat

// Both want a `kOp`, the name of the op, where they stand.
#define WAT_CHECK(condition, ...)                    \
  do {                                               \
    if (!(condition)) ::wat::fail(kOp, __VA_ARGS__); \
  } while (0)

// For calls of torch's C shim, which return 0 or say what failed on stderr; `action` completes "torch could not".
#define WAT_CALL_TORCH(action, call) WAT_CHECK((call) == 0, "torch could not ", action)
