// Packs of stored numbers against load_scalar and store_scalar, bit for bit: here, since this room is built for every
// instruction set.
#include <switchyard/backend/eigen.hpp>
#include <switchyard/core/stored.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace sy = switchyard;

namespace {

template <class T>
T from_bits(std::uint32_t bits) {
    const auto narrow = static_cast<std::uint16_t>(bits);
    T number;
    std::memcpy(static_cast<void*>(&number), &narrow, sizeof narrow);
    return number;
}

template <class T>
std::uint16_t bits_of(T number) {
    std::uint16_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

/// Numbers at and beside everything that 16 bits can hold and the middles between them, and random bits.
std::vector<float> hard_numbers() {
    std::vector<float> numbers;
    for (std::uint32_t i = 0; i < 65536; ++i) {
        for (const std::uint32_t center :
             {i << 16, i << 16 | 0x8000u,
              std::bit_cast<std::uint32_t>(static_cast<float>(from_bits<Eigen::half>(i)))}) {
            for (const std::uint32_t offset : {0u, 1u, ~0u, 0x1000u, 0x0fffu, 0x1001u}) {
                numbers.push_back(std::bit_cast<float>(center + offset));
            }
        }
    }
    std::mt19937 engine(1);
    for (int i = 0; i < 1 << 18; ++i) numbers.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(engine())));
    return numbers;
}

template <class P, class T>
void check_every_number() {
    constexpr std::uint32_t W = P::width;
    T stored[W];
    float loaded[W];
    int wrong = 0;
    for (std::uint32_t first = 0; first < 65536; first += W) {
        for (std::uint32_t i = 0; i < W; ++i) stored[i] = from_bits<T>(first + i);
        sy::load_stored<P>(stored).store(loaded);
        for (std::uint32_t i = 0; i < W; ++i) {
            wrong +=
                std::bit_cast<std::uint32_t>(loaded[i]) != std::bit_cast<std::uint32_t>(sy::load_scalar(stored[i]));
        }
    }
    CHECK(wrong == 0);
    static const std::vector<float> numbers = hard_numbers();
    for (std::size_t first = 0; first + W <= numbers.size(); first += W) {
        sy::store_stored(P::load(numbers.data() + first), stored);
        for (std::uint32_t i = 0; i < W; ++i) {
            wrong += bits_of(stored[i]) != bits_of(sy::store_scalar<T>(numbers[first + i]));
        }
    }
    CHECK(wrong == 0);
}

}  // namespace

TEST_CASE_TEMPLATE("stored: packs of every 16-bit number, and of numbers that are hard to round", T, Eigen::bfloat16,
                   Eigen::half) {
    static_assert(sy::format_of<T> != sy::stored_format::unknown);
    check_every_number<sy::pack<float, 1>, T>();
    check_every_number<sy::pack<float, 4>, T>();
    check_every_number<sy::pack<float, sy::native_width<float>>, T>();
}

TEST_CASE_TEMPLATE("stored: the first numbers alone are read and written", T, float, double, Eigen::bfloat16,
                   Eigen::half) {
    using S = sy::compute_t<T>;
    using P = sy::pack<S, sy::native_width<S>>;
    constexpr int W = P::width;
    for (int n = 0; n <= W; ++n) {
        std::vector<T> numbers;
        for (int i = 0; i < n; ++i) numbers.push_back(sy::store_scalar<T>(static_cast<S>(i + 1)));
        S loaded[W];
        sy::load_first_stored<P>(numbers.data(), n).store(loaded);
        T written[W + 1];
        for (T& number : written) number = sy::store_scalar<T>(S(-7));
        sy::store_first_stored(P::load(loaded), written, n);
        for (int i = 0; i <= W; ++i) {
            if (i < W) CHECK(loaded[i] == (i < n ? static_cast<S>(i + 1) : S(0)));
            CHECK(sy::load_scalar(written[i]) == (i < n ? static_cast<S>(i + 1) : S(-7)));
        }
    }
}

TEST_CASE_TEMPLATE("stored: streamed numbers are those stored", T, float, Eigen::bfloat16, Eigen::half) {
    using P = sy::pack<float, sy::native_width<float>>;
    alignas(64) T streamed[P::width];
    T stored[P::width];
    float numbers[P::width];
    for (int i = 0; i < P::width; ++i) numbers[i] = 1.0f / static_cast<float>(i + 3);
    sy::stream_stored(P::load(numbers), streamed);
    sy::store_stored(P::load(numbers), stored);
    CHECK(std::memcmp(streamed, stored, sizeof stored) == 0);
}
