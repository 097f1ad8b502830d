// The library's only error: a message that names the argument, its value and the rule it broke.
//
// With exceptions, `fail(...)` throws `switchyard::error`. Without them (-fno-exceptions) it calls the handler set with
// `set_error_handler`, which must not return; the default prints the message to stderr and aborts.
//
//   require(k >= 1 && k <= experts, "k = ", k, " must lie in 1..E = ", experts);
//
// The message is composed only when the rule is broken. Composing allocates; checking does not.
#pragma once

#include <switchyard/core/config.hpp>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace switchyard {

/// Thrown for every broken precondition and for scores that no router may use.
class error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// Called with the message where exceptions are off. It must not return: abort, longjmp or end the thread.
using error_handler = void (*)(const char* sentence);

namespace fatal {

inline void print_and_abort(const char* sentence) {
    std::fprintf(stderr, "switchyard: %s\n", sentence);
    std::abort();
}

inline error_handler& current_error_handler() {
    static error_handler handler = &print_and_abort;
    return handler;
}

}  // namespace fatal

/// Replaces the handler used where exceptions are off and returns the old one; null restores the default. Set it before
/// threads start: it is one plain pointer for the whole program.
inline error_handler set_error_handler(error_handler handler) {
    const error_handler old = fatal::current_error_handler();
    fatal::current_error_handler() = handler != nullptr ? handler : &fatal::print_and_abort;
    return old;
}

inline namespace SWITCHYARD_TARGET {
namespace detail {

template <class Part>
void append(std::string& sentence, const Part& part) {
    if constexpr (std::is_same_v<Part, bool>) {
        sentence += part ? "true" : "false";
    } else if constexpr (std::is_floating_point_v<Part>) {
        char digits[32];
        std::snprintf(digits, sizeof digits, "%.9g", static_cast<double>(part));
        sentence += digits;
    } else if constexpr (std::is_arithmetic_v<Part>) {
        sentence += std::to_string(part);
    } else {
        sentence += std::string_view(part);
    }
}

}  // namespace detail

/// Composes the message from its parts (text and numbers) and throws `error`, or calls the handler.
template <class... Parts>
[[noreturn]] SWITCHYARD_COLD void fail(const Parts&... parts) {
    std::string sentence;
    (detail::append(sentence, parts), ...);
#if SWITCHYARD_EXCEPTIONS
    throw error(sentence);
#else
    switchyard::fatal::current_error_handler()(sentence.c_str());
    std::abort();
#endif
}

/// Fails with the message unless the rule holds. Inlined, so that a rule that holds costs only its test.
template <class... Parts>
SWITCHYARD_ALWAYS_INLINE void require(bool rule, const Parts&... parts) {
    if (!rule) [[unlikely]] {
        fail(parts...);
    }
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
