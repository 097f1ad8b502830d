// Runs a fuzz target without a fuzzer: on the files named, or, without any, on inputs made of a counter, always the
// same.
//
//   replay_assignment                   a few thousand inputs
//   replay_assignment crash-1234...     what a fuzzer found
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size);

namespace {

/// Steele, Lea and Flood's SplitMix64.
std::uint64_t scrambled(std::uint64_t x) {
    x += 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31);
}

/// Half of the inputs are short and ask for more numbers than they hold; half are long.
std::vector<std::uint8_t> numbered_input(std::uint64_t number) {
    const std::size_t size = number % 2 == 0 ? 16 + number % 32 : 600;
    std::vector<std::uint8_t> bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(scrambled(1000 * number + i));
    if (number % 2 == 0) bytes[0] |= 1;
    return bytes;
}

bool run_file(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file) {
        std::fprintf(stderr, "replay: %s cannot be read\n", path);
        return false;
    }
    const std::vector<std::uint8_t> bytes(text.begin(), text.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        if (!run_file(argv[i])) return 2;
    }
    if (argc > 1) return 0;
    constexpr std::uint64_t inputs = 4000;
    LLVMFuzzerTestOneInput(nullptr, 0);
    for (std::uint64_t number = 0; number < inputs; ++number) {
        const auto bytes = numbered_input(number);
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    return 0;
}
