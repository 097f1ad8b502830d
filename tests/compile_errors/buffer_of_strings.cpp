// Buffers hold plain numbers, which may be moved by memcpy and left uninitialised.
// expect: switchyard::buffer holds plain numbers
#include <switchyard/core/memory.hpp>

#include <string>

#ifndef WITHOUT_MISTAKE
switchyard::buffer<std::string> names(3);
#else
switchyard::buffer<char> names(3);
#endif
