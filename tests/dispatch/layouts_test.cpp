// Rows in every layout against contiguous ones, bit for bit.
#include "support/backends.hpp"
#include "support/rows.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/dispatch/combine.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

using namespace switchyard_test;

namespace {

// A storage type of a user's own, whose format the library does not know.
struct hundredths {
    std::int32_t count;
    friend bool operator==(const hundredths&, const hundredths&) = default;
};

}  // namespace

template <>
struct switchyard::scalar_traits<hundredths> {
    using compute = double;
    static double load(hundredths x) { return x.count / 100.0; }
    static hundredths store(double x) { return {static_cast<std::int32_t>(std::lround(x * 100))}; }
};

namespace {

enum class layout { rows, columns, columns_a_power_of_two_apart, neither };
constexpr layout all_layouts[] = {layout::rows, layout::columns, layout::columns_a_power_of_two_apart, layout::neither};

/// Numbers in a layout; what lies between them is not to change.
template <class T>
class laid_out {
  public:
    laid_out(layout how, const sy::matrix<T>& from) : rows_(from.rows()), columns_(from.columns()) {
        if (how == layout::rows) {
            row_stride_ = columns_ + 3;
        } else if (how == layout::neither) {
            column_stride_ = 2;
            row_stride_ = 2 * columns_ + 1;
        } else {
            row_stride_ = 1;
            column_stride_ = how == layout::columns
                                 ? rows_ + 5
                                 : static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(rows_ + 1)));
        }
        numbers_.assign(static_cast<std::size_t>(rows_ * row_stride_ + columns_ * column_stride_ + 1), gap_number<T>());
        for (index_t i = 0; i < rows_; ++i) {
            for (index_t j = 0; j < columns_; ++j) view()(i, j) = from(i, j);
        }
    }

    /// Off by one number, so that nothing is aligned.
    sy::matrix_view<T> view() { return {numbers_.data() + 1, rows_, columns_, row_stride_, column_stride_}; }

    /// "" where the numbers have the bits of `want`, and the gaps are as they were.
    std::string mismatch(const sy::matrix<T>& want) {
        for (index_t i = 0; i < rows_; ++i) {
            for (index_t j = 0; j < columns_; ++j) {
                const T number = view()(i, j);
                if (std::memcmp(&number, &want(i, j), sizeof number) != 0) {
                    return "row " + std::to_string(i) + ", column " + std::to_string(j);
                }
                view()(i, j) = gap_number<T>();
            }
        }
        for (const T& number : numbers_) {
            if (!(number == gap_number<T>())) return "a gap was written";
        }
        return "";
    }

  private:
    index_t rows_, columns_, row_stride_ = 1, column_stride_ = 1;
    std::vector<T> numbers_;
};

template <class T>
sy::matrix<T> random_numbers(index_t rows, index_t columns, std::uint64_t seed) {
    return stored<T>(gaussian_scores(rows, columns, seed));
}

template <class T>
void check_layouts(index_t tokens, index_t experts, index_t k, std::optional<double> factor, index_t width) {
    using S = sy::compute_t<T>;
    const auto [plan, want] = random_plan<S>(tokens, experts, k, factor, static_cast<std::uint64_t>(width + k));
    const auto x = random_numbers<T>(tokens, width, 2);
    const auto rows = random_numbers<T>(plan.kept(), width, 3);
    const auto none = [&](index_t n) { return filled_matrix<T>(n, width, 9); };
    const auto no_gates = [&] { return filled_matrix<S>(tokens, k, 9); };

    auto dispatched = none(plan.kept()), weighed = none(plan.kept()), d_rows = none(plan.kept());
    auto combined = none(tokens), added = random_numbers<T>(tokens, width, 2), d_x = none(tokens),
         gated_d_x = none(tokens);
    auto d_gates = no_gates(), d_input_gates = no_gates();
    sy::dispatch(sy::seq, plan, x, dispatched);
    sy::dispatch(sy::seq, plan, x, weighed, {.apply_gates = true});
    sy::combine(sy::seq, plan, rows, combined);
    sy::combine(sy::seq, plan, rows, added, {.accumulate = true});
    sy::dispatch_backward(sy::seq, plan, rows, d_x);
    sy::dispatch_backward(sy::seq, plan, x, rows, gated_d_x, d_input_gates);
    sy::combine_backward(sy::seq, plan, rows, x, d_rows, d_gates);

    for (const layout of_tokens : all_layouts) {
        for (const layout of_rows : all_layouts) {
            CAPTURE(static_cast<int>(of_tokens));
            CAPTURE(static_cast<int>(of_rows));
            CAPTURE(width);
            CAPTURE(k);
            laid_out<T> in(of_tokens, x), expert_rows(of_rows, rows);
            laid_out<T> out(of_rows, none(plan.kept()));
            sy::dispatch(sy::seq, plan, in.view(), out.view());
            CHECK(out.mismatch(dispatched) == "");
            out = laid_out<T>(of_rows, none(plan.kept()));
            sy::dispatch(sy::seq, plan, in.view(), out.view(), {.apply_gates = true});
            CHECK(out.mismatch(weighed) == "");

            laid_out<T> y(of_tokens, none(tokens));
            sy::combine(sy::seq, plan, expert_rows.view(), y.view());
            CHECK(y.mismatch(combined) == "");
            y = laid_out<T>(of_tokens, x);
            sy::combine(sy::seq, plan, expert_rows.view(), y.view(), {.accumulate = true});
            CHECK(y.mismatch(added) == "");
            y = laid_out<T>(of_tokens, none(tokens));
            sy::dispatch_backward(sy::seq, plan, expert_rows.view(), y.view());
            CHECK(y.mismatch(d_x) == "");

            auto gates = no_gates();
            y = laid_out<T>(of_tokens, none(tokens));
            sy::dispatch_backward(sy::seq, plan, in.view(), expert_rows.view(), y.view(), gates);
            CHECK(y.mismatch(gated_d_x) == "");
            CHECK(std::memcmp(gates.data(), d_input_gates.data(), static_cast<std::size_t>(tokens * k) * sizeof(S)) ==
                  0);
            gates = no_gates();
            out = laid_out<T>(of_rows, none(plan.kept()));
            sy::combine_backward(sy::seq, plan, expert_rows.view(), in.view(), out.view(), gates);
            CHECK(out.mismatch(d_rows) == "");
            CHECK(std::memcmp(gates.data(), d_gates.data(), static_cast<std::size_t>(tokens * k) * sizeof(S)) == 0);
        }
    }
}

}  // namespace

TEST_CASE_TEMPLATE("layouts: rows and columns give the same bits, for every storage and width", T, float, double,
                   Eigen::bfloat16, Eigen::half, hundredths) {
    for (const index_t width : {1, 3, 4, 15, 16, 31, 64, 67, 130}) check_layouts<T>(70, 5, 2, 0.8, width);
    for (const index_t k : {1, 3, 9, 20}) check_layouts<T>(90, 20, k, 0.7, 21);
}

TEST_CASE("layouts: several blocks of tokens, and outputs that are written past the cache") {
    check_layouts<float>(5000, 16, 1, {}, 9);
    check_layouts<float>(4103, 7, 3, 0.9, 6);
    // 8 MiB and more, and columns that begin with a cache line.
    const auto [plan, want] = random_plan<float>(8192, 16, 1, {}, 6);
    const auto rows = random_numbers<float>(8192, 257, 7);
    sy::buffer<float> from(8192 * 257), to(8192 * 257);
    const sy::matrix_view<float> in(from.data(), 8192, 257, 1, 8192), out(to.data(), 8192, 257, 1, 8192);
    for (index_t i = 0; i < 8192; ++i) {
        for (index_t j = 0; j < 257; ++j) in(i, j) = rows(i, j);
    }
    sy::matrix<float> y(8192, 257);
    sy::combine(sy::seq, plan, rows, y);
    sy::combine(sy::seq, plan, in, out);
    index_t different = 0;
    for (index_t i = 0; i < 8192; ++i) {
        for (index_t j = 0; j < 257; ++j) different += out(i, j) != y(i, j);
    }
    CHECK(different == 0);
}

TEST_CASE("layouts: more choices than a tile has room for") {
    check_layouts<float>(2, 2100, 2060, {}, 5);
    check_layouts<Eigen::bfloat16>(2, 2100, 2060, {}, 5);
}

TEST_CASE("layouts: numbers that are only moved keep their bits") {
    // A NaN with a payload, which a conversion would lose.
    const auto plan = routed<float>(sy::top_k_router{.k = 1}, ref::matrix{{1, 0}, {0, 1}});
    const std::uint16_t nan = 0x7fab;
    for (const layout how : all_layouts) {
        sy::matrix<Eigen::bfloat16> x(2, 5);
        for (index_t i = 0; i < 10; ++i) std::memcpy(static_cast<void*>(x.data() + i), &nan, sizeof nan);
        laid_out<Eigen::bfloat16> in(how, x), out(how, filled_matrix<Eigen::bfloat16>(2, 5, 1));
        sy::dispatch(sy::seq, plan, in.view(), out.view());
        CHECK(out.mismatch(x) == "");
    }
}
