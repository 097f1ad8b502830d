// How an example program ends where its input is bad: one line on stderr and status 2.
#pragma once

#include <cctype>
#include <exception>
#include <iostream>
#include <new>
#include <string>

namespace study {

inline int complain(const char* program, std::string sentence) {
    for (char& c : sentence) {
        c = std::iscntrl(static_cast<unsigned char>(c)) != 0 ? ' ' : c;
    }
    std::cerr << program << ": " << sentence << std::endl;
    return 2;
}

/// The status that run() returns, or that of a complaint; `too_large` is the sentence where memory runs out.
template <class Run>
int run_or_complain(const char* program, const char* too_large, Run&& run) {
    try {
        return run();
    } catch (const std::bad_alloc&) {
        return complain(program, too_large);
    } catch (const std::exception& problem) {
        return complain(program, problem.what());
    }
}

}  // namespace study
