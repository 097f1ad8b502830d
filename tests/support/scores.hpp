// Score tables to test with: random ones, and the hostile kinds that routers stumble over. Always the same for the same
// seed, and exact in float, so that the library in float and the reference in double see the same numbers.
#pragma once

#include <switchyard/core/memory.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/reference/matrix.hpp>

#include <cstdint>
#include <limits>
#include <ostream>
#include <random>

namespace switchyard_test {

namespace sy = switchyard;
namespace ref = switchyard::reference;
using sy::index_t;

constexpr double never = -std::numeric_limits<double>::infinity();

/// What a table looks like.
enum class score_kind {
    gaussian,        ///< what routers usually see
    small_integers,  ///< -2 .. 2: ties everywhere
    equal,           ///< every score of the table the same
    signed_zeros,    ///< 0 and -0, which are equal
    huge,            ///< up to the largest float of both signs
    close,           ///< neighbouring floats
    one_expert,      ///< one expert far ahead for every token
    equal_rows,      ///< every token the same as the one before, mostly
    wide,            ///< Gaussian times 30: probabilities from 1 down to 0
    count
};

inline std::ostream& operator<<(std::ostream& out, score_kind kind) {
    constexpr const char* names[] = {"gaussian", "small_integers", "equal",      "signed_zeros", "huge",
                                     "close",    "one_expert",     "equal_rows", "wide"};
    return out << names[static_cast<int>(kind)];
}

inline double draw_score(score_kind kind, std::mt19937_64& random, index_t expert) {
    std::normal_distribution<double> normal;
    const auto whole = [&](int least, int most) { return std::uniform_int_distribution<int>(least, most)(random); };
    switch (kind) {
        case score_kind::small_integers:
            return whole(-2, 2);
        case score_kind::equal:
            return 0.25;
        case score_kind::signed_zeros:
            return whole(0, 1) == 0 ? 0.0 : -0.0;
        case score_kind::huge:
            return static_cast<double>(std::numeric_limits<float>::max()) * whole(-2, 2) / 2;
        case score_kind::close:
            return 1 + whole(0, 3) * 0x1p-23;
        case score_kind::one_expert:
            return expert == 1 ? 20 : normal(random);
        case score_kind::wide:
            return 30 * normal(random);
        default:
            return normal(random);
    }
}

/// A table of a kind, `forbidden` in 256 scores -infinity.
inline ref::matrix draw_scores(score_kind kind, index_t tokens, index_t experts, std::uint64_t seed,
                               int forbidden = 0) {
    std::mt19937_64 random(seed);
    ref::matrix scores(tokens, experts);
    for (index_t t = 0; t < tokens; ++t) {
        const bool repeat = kind == score_kind::equal_rows && t > 0 && random() % 4 != 0;
        for (index_t e = 0; e < experts; ++e) {
            scores(t, e) = repeat ? scores(t - 1, e) : static_cast<float>(draw_score(kind, random, e));
            if (static_cast<int>(random() % 256) < forbidden) scores(t, e) = never;
        }
    }
    return scores;
}

inline ref::matrix gaussian_scores(index_t tokens, index_t experts, std::uint64_t seed) {
    return draw_scores(score_kind::gaussian, tokens, experts, seed);
}

/// A mask in which about one row in four is padding.
inline ref::mask_list draw_mask(index_t tokens, std::uint64_t seed) {
    std::mt19937_64 random(seed + 77);
    auto mask = ref::filled<std::uint8_t>(tokens, 1);
    for (auto& byte : mask) byte = random() % 4 != 0 ? 1 : 0;
    return mask;
}

/// The library's view of the reference's mask.
inline sy::token_mask mask_of(const ref::mask_list& mask) {
    return mask.empty() ? sy::token_mask{} : sy::token_mask{mask.data(), mask.length()};
}

/// What is left of numbers stored as `Storage`.
template <class Storage>
ref::matrix rounded_to(ref::matrix numbers) {
    for (double& number : numbers.values) {
        number = static_cast<double>(
            sy::load_scalar(sy::store_scalar<Storage>(static_cast<sy::compute_t<Storage>>(number))));
    }
    return numbers;
}

/// A dense matrix of the library with the numbers of a table.
template <class S>
sy::matrix<S> stored(const ref::matrix& numbers) {
    sy::matrix<S> m(numbers.rows, numbers.columns);
    for (index_t i = 0; i < numbers.values.length(); ++i) {
        m.data()[i] = sy::store_scalar<S>(static_cast<sy::compute_t<S>>(numbers.values[i]));
    }
    return m;
}

}  // namespace switchyard_test
