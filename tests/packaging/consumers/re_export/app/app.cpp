#include <engine.hpp>

#include <array>
#include <cstdio>

int main() {
    const std::array<float, 4> scores{1, 5, 3, 2};
    try {
        engine::largest({});
        return 1;
    } catch (const switchyard::error& e) {
        std::printf("%s; otherwise %g\n", e.what(), static_cast<double>(engine::largest({scores.data(), 2, 2})));
    }
    return engine::largest({scores.data(), 2, 2}) == 5.0f ? 0 : 1;
}
