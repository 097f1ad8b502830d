// Links both objects, as an engine does that picks one at run time, and compares what they compute.
#include "route.hpp"

#include <cstdio>
#include <vector>

namespace {

constexpr index_t tokens = 300;
constexpr index_t experts = 37;

struct outcome {
    std::vector<float> scores = std::vector<float>(static_cast<std::size_t>(tokens * experts));
    std::vector<std::int32_t> chosen = std::vector<std::int32_t>(static_cast<std::size_t>(tokens), -1);
    bool complete = false;

    explicit outcome(routed (*route)(matrix_view<float>, matrix_view<std::int32_t>)) {
        const routed r = route({scores.data(), tokens, experts}, {chosen.data(), tokens, 1});
        complete = r.tokens == tokens && r.error_caught;
    }
};

}  // namespace

int main() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        std::puts("linked; this CPU has no AVX2, so nothing ran");
        return 77;
    }
    const outcome narrow(&route_avx2);
    if (!narrow.complete || narrow.chosen.back() < 0) {
        std::puts("the AVX2 object did not route");
        return 1;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) {
        std::puts("ran the AVX2 object; this CPU has no AVX-512");
        return 0;
    }
    const outcome wide(&route_avx512);
    if (!wide.complete || wide.chosen != narrow.chosen) {
        std::puts("the two objects route differently");
        return 1;
    }
    std::puts("both objects ran, and chose the same experts");
    return 0;
}
