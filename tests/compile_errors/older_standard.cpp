// C++17: the first error says what is needed.
// mistake flags: -std=c++17
// expect: switchyard needs C++20: compile with -std=c++20
#include <switchyard/core/config.hpp>
