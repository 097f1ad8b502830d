// Links all the objects, as an engine does that picks one at run time, and compares what they compute.
#include "route.hpp"

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

constexpr index_t tokens = 300;
constexpr index_t width = 19;
constexpr index_t experts = 12;
constexpr index_t columns = 4;

struct outcome {
    std::vector<std::int32_t> chosen = std::vector<std::int32_t>(static_cast<std::size_t>(tokens * columns), -1);
    routed sums{};

    explicit outcome(routed (*route)(matrix_view<const float>, matrix_view<const float>, matrix_view<std::int32_t>)) {
        std::vector<float> x(static_cast<std::size_t>(tokens * width));
        std::vector<float> w(static_cast<std::size_t>(width * experts));
        unsigned state = 1;
        const auto fill = [&state](std::vector<float>& numbers) {
            for (float& number : numbers) {
                state = state * 1664525u + 1013904223u;
                number = static_cast<float>(state >> 8) / 16777216.0f - 0.5f;
            }
        };
        fill(x);
        fill(w);
        sums = route({x.data(), tokens, width}, {w.data(), width, experts}, {chosen.data(), tokens, columns});
    }
};

// Experts agree exactly; sums as well as float arithmetic in another order does.
bool agree(const char* name, const outcome& a, const outcome& b) {
    const double difference = std::abs(a.sums.output - b.sums.output);
    const bool good = a.sums.error_caught && b.sums.error_caught && a.sums.kept == b.sums.kept &&
                      a.chosen == b.chosen && difference < 1e-2;
    if (!good) {
        std::printf("%s routes differently: kept %lld and %lld, sums %g apart\n", name,
                    static_cast<long long>(a.sums.kept), static_cast<long long>(b.sums.kept), difference);
    }
    return good;
}

}  // namespace

int main() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        std::puts("linked; this CPU has no AVX2, so nothing ran");
        return 0;
    }
    const outcome narrow(&route_avx2);
    for (const std::int32_t expert : narrow.chosen) {
        if (expert < 0 || expert >= experts) {
            std::puts("the AVX2 object did not route");
            return 1;
        }
    }
    if (!agree("AVX2 with OpenMP", narrow, outcome(&route_avx2_openmp))) {
        return 1;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl")) {
        std::puts("ran the AVX2 objects; this CPU has no AVX-512");
        return 0;
    }
    if (!agree("AVX-512", narrow, outcome(&route_avx512))) {
        return 1;
    }
    std::puts("all ran, and route alike");
    return 0;
}
