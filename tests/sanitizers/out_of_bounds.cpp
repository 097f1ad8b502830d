// A read beyond a buffer of the library that AddressSanitizer must report.
#include <switchyard/core/memory.hpp>

#include <cstdio>

int main(int argc, char**) {
    const switchyard::buffer<char> bytes(64);
    std::printf("%d\n", bytes[63 + argc]);
    return 0;
}
