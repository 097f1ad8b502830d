// An assignment problem made of any bytes whatever: sizes, quotas, mask, scores, prices to start from and settings,
// most of them sensible, all of them possibly wrong.
#pragma once

#include <switchyard/assignment/assignment.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace fuzz {

namespace sy = switchyard;
using sy::index_t;

/// Takes bytes from the front. When they end, zeros follow, or, if the input asked for it, numbers made of them: so a
/// short input can be a large problem.
class byte_source {
  public:
    byte_source(const std::uint8_t* bytes, std::size_t size) : next_(bytes), left_(size) {
        for (std::size_t i = 0; i < size; ++i) state_ = (state_ ^ bytes[i]) * 0x100000001B3U;
    }
    void continue_at_random() { at_random_ = true; }

    std::uint8_t byte() {
        if (left_ > 0) {
            left_ -= 1;
            return *next_++;
        }
        if (!at_random_) return 0;
        state_ = state_ * 6364136223846793005U + 1442695040888963407U;
        return static_cast<std::uint8_t>(state_ >> 56);
    }
    index_t below(index_t count) { return (byte() + 256 * index_t{byte()}) % count; }
    bool one_in(int count) { return byte() % count == count - 1; }

    template <class Number>
    Number bits() {
        std::uint8_t bytes[sizeof(Number)];
        for (auto& b : bytes) b = byte();
        Number number;
        std::memcpy(&number, bytes, sizeof(Number));
        return number;
    }

  private:
    const std::uint8_t* next_;
    std::size_t left_;
    std::uint64_t state_ = 0xCBF29CE484222325U;
    bool at_random_ = false;
};

/// How numbers are read.
enum class number_kind { integers, quarters, large_offset, skewed, special, float_bits, double_bits, count };

/// Kinds of which every solver has to certify its answer.
inline bool is_tame(number_kind kind) { return kind < number_kind::special; }

inline double read_number(byte_source& from, number_kind kind, index_t expert) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    static constexpr double special[] = {
        0.0,   -0.0,   1.0,  -1.0,   infinity, 1e290,  -1e290, 1.0000001e290,
        1e300, -1e300, 1e30, -1e-30, -3.4e38,  5e-324, 1e-310, std::numeric_limits<double>::quiet_NaN()};
    switch (kind) {
        case number_kind::float_bits:
            return static_cast<double>(from.bits<float>());
        case number_kind::double_bits:
            return from.bits<double>();
        case number_kind::special: {
            const std::uint8_t b = from.byte();
            return b < 160 ? b % 16 : special[b % 16];
        }
        default:
            break;
    }
    const auto whole = static_cast<double>(from.bits<std::int8_t>());
    if (kind == number_kind::quarters) return 0.25 * whole;
    if (kind == number_kind::large_offset) return 4194304 + 0.25 * (whole + 127);
    if (kind == number_kind::skewed) return whole / 64 + 8 / static_cast<double>(expert + 1);
    return whole;
}

/// The scores of a problem: what forbids, and how often; whether numbers no solver takes are kept.
struct score_reader {
    number_kind kind = number_kind::integers;
    std::uint8_t forbidden_in_256 = 0;
    bool keep_illegal = false;
    double forbidding = -std::numeric_limits<double>::infinity();

    double operator()(byte_source& from, index_t expert) const {
        if (forbidden_in_256 > 0 && from.byte() < forbidden_in_256) return forbidding;
        const double number = read_number(from, kind, expert);
        return keep_illegal || std::abs(number) <= 1e290 ? number : forbidding;
    }
};

struct problem {
    index_t rows = 0;
    index_t experts = 0;
    std::vector<double> scores;  ///< row-major
    std::vector<index_t> lower, upper;
    sy::quotas bounds;
    std::vector<std::uint8_t> mask;
    std::vector<double> initial_prices;
    index_t choices = 1;
    sy::objective goal = sy::objective::maximise;
    bool tame = false;
    bool in_float = false;
    bool by_columns = false;
    std::uint8_t settings = 0;  ///< for the solver, whichever it is

    bool is_token(index_t t) const { return mask.empty() || mask[static_cast<std::size_t>(t)] != 0; }
    double score(index_t t, index_t e) const {
        const double s = scores[static_cast<std::size_t>(t * experts + e)];
        return in_float ? static_cast<double>(static_cast<float>(s)) : s;
    }
};

inline void read_quotas(byte_source& from, index_t tokens, problem& made) {
    const auto kind = from.byte() % 6;
    const index_t places = tokens * std::max<index_t>(made.choices, 0);
    const index_t each = made.experts == 0 ? 0 : (places + made.experts - 1) / made.experts;
    made.bounds = {.experts = made.experts};
    if (kind == 0) {
        made.bounds.lower_of_all = made.experts == 0 ? 0 : places / made.experts;
        made.bounds.upper_of_all = each;
        return;
    }
    if (kind == 1) {
        made.bounds.upper_of_all = each + from.below(3);
        return;
    }
    index_t left = places;
    for (index_t e = 0; e < made.experts; ++e) {
        // Shares that add up; or around them; or anything.
        index_t lower = e + 1 == made.experts ? left : std::min(left, from.below(2 * each + 1));
        left -= lower;
        index_t upper = lower;
        if (kind >= 3) {
            lower -= std::min(lower, from.below(4));
            upper += from.one_in(8) ? std::numeric_limits<index_t>::max() - upper : from.below(4);
        }
        if (kind == 5 && from.one_in(8)) lower = from.bits<std::int8_t>();
        if (kind == 5 && from.one_in(8)) upper = from.bits<std::int8_t>();
        made.lower.push_back(lower);
        made.upper.push_back(upper);
    }
    made.bounds.lower_bounds = made.lower.data();
    made.bounds.upper_bounds = made.upper.data();
}

inline problem read_problem(const std::uint8_t* bytes, std::size_t size) {
    byte_source from(bytes, size);
    problem made;
    const std::uint8_t flags = from.byte();
    if ((flags & 1) != 0) from.continue_at_random();
    made.in_float = (flags & 2) != 0;
    made.by_columns = (flags & 4) != 0;
    made.goal = (flags & 8) != 0 ? sy::objective::minimise : sy::objective::maximise;
    made.settings = from.byte();
    made.rows = from.below((flags & 16) != 0 ? 400 : 40);
    made.experts = from.below((flags & 32) != 0 ? 40 : 9);
    made.choices = from.one_in(3) ? (from.one_in(16) ? 0 : 1 + from.below(5)) : 1;
    score_reader score;
    score.kind = static_cast<number_kind>(from.byte() % static_cast<int>(number_kind::count));
    score.keep_illegal = from.one_in(8);
    if (from.one_in(3)) score.forbidden_in_256 = from.byte();
    if (made.goal == sy::objective::minimise) score.forbidding = -score.forbidding;
    made.tame = is_tame(score.kind);
    if (from.one_in(4)) {
        for (index_t t = 0; t < made.rows; ++t) made.mask.push_back(from.one_in(4) ? 0 : 1);
    }
    index_t tokens = 0;
    for (index_t t = 0; t < made.rows; ++t) tokens += made.is_token(t) ? 1 : 0;
    read_quotas(from, tokens, made);
    if (from.one_in(3)) {
        const auto price_kind = static_cast<number_kind>(from.byte() % static_cast<int>(number_kind::count));
        for (index_t e = 0; e < made.experts; ++e) made.initial_prices.push_back(read_number(from, price_kind, e));
    }
    const bool repeated_rows = from.one_in(4);
    for (index_t t = 0; t < made.rows; ++t) {
        const bool copy = repeated_rows && t > 0 && !from.one_in(4);
        for (index_t e = 0; e < made.experts; ++e) {
            const auto before = static_cast<std::size_t>((t - 1) * made.experts + e);
            made.scores.push_back(copy ? made.scores[before] : score(from, e));
        }
    }
    return made;
}

}  // namespace fuzz
