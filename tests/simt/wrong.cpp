// Kernels that a sanitizer must report when they run on the executor; the argument says which.
#include "simt/executor.hpp"
#include "simt/wrong_kernels.hpp"

#include <switchyard/core/memory.hpp>

#include <cstdio>
#include <string_view>

using namespace switchyard_test;

int main(int argc, char** argv) {
    const std::string_view which = argc > 1 ? argv[1] : "";
    simt::executor device;
    const simt::policy on{&device};
    const switchyard::buffer<std::int32_t, simt::memory> numbers(1024);
    const switchyard::buffer<float, simt::memory> floats(64);
    std::int32_t* const zeros = numbers.data() + 512;
    for (int i = 0; i < 8; ++i) zeros[i] = 0;

    if (which == "shared_memory") {
        on.launch(simt::write_numbers{floats.data(), 33, 64}, 1, 256);
    } else if (which == "device_memory") {
        on.launch(simt::write_numbers{floats.data(), 32, 65}, 1, 256);
    } else if (which == "missing_sync") {
        on.launch(simt::read_next_warp<false>{numbers.data()}, 1, 64);
    } else if (which == "missing_sync_warp") {
        on.launch(simt::read_lower_lane<false>{numbers.data()}, 1, 128);
    } else if (which == "missing_fence") {
        on.launch(simt::last_block_sums<false>{numbers.data(), zeros, zeros + 1}, 4, 16);
    } else if (which == "missing_atomic") {
        on.launch(simt::count_blocks<false>{zeros}, 4);
    } else {
        std::fprintf(stderr, "wrong: no kernel is called '%s'\n", argc > 1 ? argv[1] : "");
        return 2;
    }
    std::printf("%s was not reported\n", argv[1]);
    return 0;
}
