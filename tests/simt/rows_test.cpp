// Dispatch, combine and their backward by kernels, on the executor, against the CPU backend: copies bit by bit, sums of
// choices in the same order, dot products within rounding; the same bits in every order of threads, and not one byte
// written beside the results.
#include "simt/rows.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <type_traits>

using namespace switchyard_test;

namespace {

struct shape {
    index_t tokens;
    index_t experts;
    index_t k;
    index_t width;
    sy::capacity_rule capacity{};
    bool padding = false;
};

template <class S>
sy::plan<S> plan_of(const shape& s, std::uint64_t seed) {
    const auto mask = s.padding ? draw_mask(s.tokens, seed) : ref::mask_list{};
    return routed<S>(sy::top_k_router{.k = s.k, .capacity = s.capacity}, gaussian_scores(s.tokens, s.experts, seed),
                     training_with(mask));
}

/// Gaussian numbers that the storage type has, NaN in the rows of tokens without any expert: nobody may read those.
template <class T, class S>
ref::matrix token_numbers(const sy::plan<S>& plan, index_t width, std::uint64_t seed) {
    auto numbers = rounded_to<T>(gaussian_scores(plan.tokens(), width, seed));
    for (index_t t = 0; t < plan.tokens(); ++t) {
        bool has_row = false;
        for (index_t c = 0; c < plan.choices(); ++c) has_row = has_row || plan.slot()(t, c) >= 0;
        for (index_t d = 0; d < width && !has_row; ++d) numbers(t, d) = NAN;
    }
    return numbers;
}

/// How far two ways to compute what is stored as T, in C, may be apart.
template <class T, class C>
double rounding() {
    if constexpr (std::is_same_v<T, Eigen::bfloat16>) return 0x1p-7;
    if constexpr (std::is_same_v<T, Eigen::half>) return 0x1p-10;
    return tolerance<std::conditional_t<std::is_same_v<T, float>, float, C>>::gradient;
}

/// Results of each order of threads, which must be those of the first.
class same_bits {
  public:
    void add(const std::vector<std::byte>& of_this_order) { now_.push_back(of_this_order); }
    bool end_order() {
        const bool same = first_.empty() || first_ == now_;
        if (first_.empty()) first_ = now_;
        now_.clear();
        return same;
    }

  private:
    std::vector<std::vector<std::byte>> first_, now_;
};

/// Every verb on one plan: tokens stored as X, rows as R, gates and their gradients as S, all in one layout.
template <class S, class X, class R>
void check_all(const shape& s, layout how, std::uint64_t seed = 1) {
    CAPTURE(s.tokens);
    CAPTURE(s.k);
    CAPTURE(s.width);
    CAPTURE(static_cast<int>(how));
    const auto plan = plan_of<S>(s, seed);
    const auto made = on_device(plan);
    const index_t kept = plan.kept();
    const index_t bound = plan.row_bound();
    const auto x = token_numbers<X>(plan, s.width, 2);
    const auto y0 = rounded_to<X>(gaussian_scores(s.tokens, s.width, 3));
    const auto rows = rounded_to<R>(gaussian_scores(kept, s.width, 4));
    const auto host_x = stored<X>(x);
    const auto host_rows = stored<R>(rows);

    // What the CPU backend makes of it.
    const auto copied = [&](bool weigh) {
        sy::matrix<R> m(kept, s.width);
        sy::dispatch(sy::seq, plan, host_x, m, {.apply_gates = weigh});
        return m;
    };
    const auto summed = [&](bool weigh, bool accumulate) {
        auto m = stored<X>(y0);
        sy::combine(sy::seq, plan, host_rows, m, {.apply_gates = weigh, .accumulate = accumulate});
        return m;
    };
    sy::matrix<R> d_rows(kept, s.width);
    sy::matrix<S> d_gates(s.tokens, s.k);
    sy::combine_backward(sy::seq, plan, host_rows, host_x, d_rows, d_gates);
    sy::matrix<X> d_x(s.tokens, s.width);
    sy::matrix<S> d_input_gates(s.tokens, s.k);
    sy::dispatch_backward(sy::seq, plan, host_x, host_rows, d_x, d_input_gates);

    const double allowed = rounding<X, S>();
    using A = sy::compute_t<R>;
    const double width = static_cast<double>(s.width);
    const double of_dots = 8 * std::max(tolerance<S>::epsilon, tolerance<A>::epsilon) * std::sqrt(width + 16);
    const double size_of_dots = 4 * std::sqrt(width + 1);

    const laid_out<X> device_x(how, s.tokens, s.width);
    device_x.fill(x);
    const laid_out<R> device_rows(how, bound + 1, s.width);
    device_rows.fill(rows);
    same_bits outcomes;
    simt::for_each_order([&](simt::executor& executor) {
        CAPTURE(executor.order().name());
        const simt::policy on{&executor};
        for (const bool weigh : {false, true}) {
            const laid_out<R> out(how, bound + 1, s.width);
            sy::dispatch(on, made, device_x.view(), out.view(), {.apply_gates = weigh});
            CHECK(out.bytes(kept) == bytes_of(copied(weigh), kept));
            CHECK(out.is_untouched_beyond(kept));
            for (const bool accumulate : {false, true}) {
                const laid_out<X> y(how, s.tokens, s.width);
                y.fill(y0);
                sy::combine(on, made, device_rows.view(), y.view(), {.apply_gates = weigh, .accumulate = accumulate});
                CHECK(rows_difference(y, summed(weigh, accumulate), s.tokens, allowed) == "");
                CHECK(y.is_untouched_beyond(s.tokens));
                outcomes.add(y.bytes(s.tokens));
            }
        }
        {
            const laid_out<R> out(how, bound + 1, s.width);
            const laid_out<S> dots(how, s.tokens, s.k);
            sy::combine_backward(on, made, device_rows.view(), device_x.view(), out.view(), dots.view());
            CHECK(out.bytes(kept) == bytes_of(d_rows, kept));
            CHECK(out.is_untouched_beyond(kept));
            CHECK(rows_difference(dots, d_gates, s.tokens, of_dots, size_of_dots) == "");
            CHECK(dots.is_untouched_beyond(s.tokens));
            outcomes.add(dots.bytes(s.tokens));
            // In place of the expert output.
            const laid_out<R> both(how, bound + 1, s.width);
            both.fill(rows);
            const laid_out<S> again(how, s.tokens, s.k);
            sy::combine_backward(on, made, both.view(), device_x.view(), both.view(), again.view());
            CHECK(both.bytes(kept) == out.bytes(kept));
            CHECK(again.bytes(s.tokens) == dots.bytes(s.tokens));
            // Not weighed, the gradient is a copy.
            const laid_out<R> plain(how, bound + 1, s.width);
            sy::combine_backward(on, made, device_rows.view(), device_x.view(), plain.view(), dots.view(),
                                 {.apply_gates = false});
            CHECK(plain.bytes(kept) == bytes_of(copied(false), kept));
        }
        {
            const laid_out<X> sums(how, s.tokens, s.width);
            const laid_out<S> dots(how, s.tokens, s.k);
            sy::dispatch_backward(on, made, device_x.view(), device_rows.view(), sums.view(), dots.view());
            CHECK(rows_difference(sums, d_x, s.tokens, allowed) == "");
            CHECK(rows_difference(dots, d_input_gates, s.tokens, of_dots, size_of_dots) == "");
            CHECK(sums.is_untouched_beyond(s.tokens));
            CHECK(dots.is_untouched_beyond(s.tokens));
            outcomes.add(sums.bytes(s.tokens));
            outcomes.add(dots.bytes(s.tokens));
            // By themselves, the dot products are the same.
            const laid_out<S> alone(how, s.tokens, s.k);
            dot_rows(on, made.view(), sy::const_view(device_rows.view()), sy::const_view(device_x.view()),
                     alone.view());
            CHECK(alone.bytes(s.tokens) == dots.bytes(s.tokens));
            const laid_out<X> unweighed(how, s.tokens, s.width);
            sy::dispatch_backward(on, made, device_rows.view(), unweighed.view());
            CHECK(rows_difference(unweighed, summed(false, false), s.tokens, allowed) == "");
        }
        CHECK(outcomes.end_order());
    });
}

}  // namespace

TEST_CASE("rows by kernels: every width and number of choices, with drops") {
    for (const index_t width : {1, 3, 4, 5, 7, 8, 33, 64, 100, 512, 1000}) {
        for (const index_t k : {1, 2, 8}) {
            check_all<float, float, float>({width > 100 ? 9 : 70, 9, k, width, {.factor = 0.8}}, layout::dense,
                                           static_cast<std::uint64_t>(width));
        }
    }
}

TEST_CASE("rows by kernels: many tokens, padding among them") {
    check_all<float, float, float>({300, 16, 2, 64, {.factor = 0.9}, true}, layout::dense);
    check_all<float, float, float>({300, 5, 1, 12, {.factor = 0.7}, true}, layout::dense);
    check_all<float, float, float>({300, 64, 8, 16, {.factor = 1.0}, true}, layout::dense);
}

TEST_CASE("rows by kernels: no token, one token, one expert, nothing kept, nothing to move") {
    for (const index_t tokens : {0, 1, 2}) {
        for (const index_t width : {0, 1, 8, 640}) {
            check_all<float, float, float>({tokens, 4, 2, width}, layout::dense);
            check_all<float, float, float>({tokens, 1, 1, width}, layout::dense);
        }
    }
    for (const index_t width : {0, 3, 64}) {
        check_all<float, float, float>({40, 6, 3, width, {.number = 0}}, layout::dense);
        check_all<float, float, float>({40, 6, 3, width, {.number = 1}}, layout::dense);
    }
}

TEST_CASE("rows by kernels: more choices than a warp has lanes") {
    check_all<float, float, float>({7, 40, 40, 5, {.factor = 0.7}}, layout::dense);
    check_all<float, float, float>({5, 70, 67, 96, {.factor = 0.7}}, layout::dense);
    check_all<float, Eigen::bfloat16, Eigen::bfloat16>({5, 40, 33, 64}, layout::dense);
}

TEST_CASE("rows by kernels: any layout") {
    for (int how = 0; how < static_cast<int>(layout::count); ++how) {
        for (const index_t width : {7, 64, 260}) {
            check_all<float, float, float>({30, 6, 2, width, {.factor = 0.8}}, static_cast<layout>(how));
        }
        check_all<float, Eigen::bfloat16, Eigen::bfloat16>({30, 6, 2, 48, {.factor = 0.8}}, static_cast<layout>(how));
        check_all<double, double, double>({30, 6, 2, 34, {.factor = 0.8}}, static_cast<layout>(how));
    }
}

TEST_CASE("rows by kernels: storage types, and conversions between them") {
    for (const index_t width : {5, 64, 264, 1000}) {
        const shape s{21, 6, 3, width, {.factor = 0.8}};
        check_all<double, double, double>(s, layout::dense);
        check_all<float, Eigen::bfloat16, Eigen::bfloat16>(s, layout::dense);
        check_all<float, Eigen::half, Eigen::half>(s, layout::dense);
        check_all<float, Eigen::bfloat16, float>(s, layout::dense);
        check_all<float, float, Eigen::bfloat16>(s, layout::dense);
        check_all<float, Eigen::half, Eigen::bfloat16>(s, layout::dense);
        check_all<double, float, double>(s, layout::dense);
        check_all<float, double, Eigen::half>(s, layout::dense);
    }
}

TEST_CASE("rows by kernels: what is not weighed keeps its bits, NaN's included") {
    const auto plan = plan_of<float>({20, 4, 2, 16}, 5);
    const auto made = on_device(plan);
    const laid_out<float> x(layout::dense, 20, 16);
    for (index_t i = 0; i < 20 * 16; ++i) {
        const std::uint32_t bits = 0x7f800001u + static_cast<std::uint32_t>(i);  // signalling NaNs, each another
        std::memcpy(&x.view().data[i], &bits, sizeof bits);
    }
    simt::executor executor;
    const laid_out<float> rows(layout::dense, plan.row_bound(), 16);
    sy::dispatch(simt::policy{&executor}, made, x.view(), rows.view());
    for (index_t r = 0; r < plan.kept(); ++r) {
        const index_t token = plan.view().token_of(plan.view().order[r]);
        CHECK(std::memcmp(rows.view().row(r), x.view().row(token), 16 * sizeof(float)) == 0);
    }
}

TEST_CASE("rows by kernels: combine's gradient of the rows may take the place of the rows") {
    for (const index_t width : {3, 64, 700}) {
        const auto plan = plan_of<float>({50, 6, 2, width, {.factor = 0.8}}, 6);
        const auto made = on_device(plan);
        const auto d_y = stored<float>(gaussian_scores(50, width, 1));
        const auto rows = gaussian_scores(plan.kept(), width, 2);
        const auto want = sy::combine_backward(sy::seq, plan, stored<float>(rows), d_y);
        const laid_out<float> device_d_y(layout::dense, 50, width);
        device_d_y.fill(gaussian_scores(50, width, 1));
        simt::for_each_order([&](simt::executor& executor) {
            const laid_out<float> both(layout::dense, plan.row_bound(), width);
            both.fill(rows);
            const laid_out<float> d_gates(layout::dense, 50, 2);
            sy::combine_backward(simt::policy{&executor}, made, both.view(), device_d_y.view(), both.view(),
                                 d_gates.view());
            CHECK(both.bytes(plan.kept()) == bytes_of(want.d_rows, plan.kept()));
            CHECK(rows_difference(d_gates, want.d_gates, 50, 1e-5, 30) == "");
        });
    }
}

TEST_CASE("rows by kernels: rules broken are named as on any device") {
    const auto plan = plan_of<float>({10, 3, 2, 4}, 1);
    const auto made = on_device(plan);
    simt::executor executor;
    const simt::policy on{&executor};
    const laid_out<float> x(layout::dense, 10, 4), rows(layout::dense, 20, 4), few(layout::dense, 19, 4);
    const laid_out<float> nine(layout::dense, 9, 4), d_gates(layout::dense, 10, 2), one_gate(layout::dense, 10, 1);
    CHECK(sentence_of([&] { sy::dispatch_backward(on, made, nine.view(), rows.view(), x.view(), d_gates.view()); }) ==
          "x has 9 rows; the plan was made for 10 tokens");
    CHECK(sentence_of([&] { sy::dispatch_backward(on, made, x.view(), rows.view(), nine.view(), d_gates.view()); }) ==
          "d_x is 9 x 4; x is 10 x 4");
    CHECK(sentence_of([&] { sy::dispatch_backward(on, made, x.view(), few.view(), x.view(), d_gates.view()); }) ==
          "d_rows has 19 rows; the plan needs 20");
    CHECK(sentence_of([&] { sy::dispatch_backward(on, made, x.view(), rows.view(), x.view(), one_gate.view()); }) ==
          "d_gates is 10 x 1; the plan has 10 tokens x 2 choices");
    CHECK(executor.counted().launches == 0);
}
