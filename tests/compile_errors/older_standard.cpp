// C++17: the first error says what is needed, and hardly anything follows.
// mistake flags: -std=c++17
// expect: switchyard needs C++20: compile with -std=c++20
// most lines: 25
#include <switchyard/switchyard.hpp>
