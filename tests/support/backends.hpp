// What typed tests run over: layout of the numbers x policy x scalar.
//
//   TEST_CASE_TEMPLATE_DEFINE("...", B, id) { typename B::storage; typename B::template layout<T> m(table);
//   B::each_policy(f); } TEST_CASE_TEMPLATE_APPLY(id, every_backend);
//
// A layout holds the numbers of a table and shows them as an argument of the library's functions; where it leaves gaps
// between them, the gaps hold a number of their own, and `gaps_intact()` tells whether somebody wrote there.
#pragma once

#include "support/scores.hpp"
#include "support/thread_pool.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/backend/policy.hpp>

#include <span>
#include <tuple>
#include <vector>

namespace switchyard_test {

template <class S>
S stored_number(double number) {
    return sy::store_scalar<S>(static_cast<sy::compute_t<S>>(number));
}

/// What stands in gaps: no NaN, since it has to compare equal to itself.
template <class S>
S gap_number() {
    return stored_number<S>(-1234);
}

/// Reads and fills through the argument itself.
template <class Layout>
ref::matrix numbers_of(Layout& layout) {
    const auto view = sy::as_view(layout.argument());
    ref::matrix copy(view.rows, view.columns);
    for (index_t i = 0; i < view.rows; ++i) {
        for (index_t j = 0; j < view.columns; ++j) copy(i, j) = static_cast<double>(sy::load_scalar(view(i, j)));
    }
    return copy;
}

template <class View, class S>
void fill_view(const View& view, const ref::matrix& numbers, S) {
    for (index_t i = 0; i < numbers.rows; ++i) {
        for (index_t j = 0; j < numbers.columns; ++j) view(i, j) = stored_number<S>(numbers(i, j));
    }
}

template <class S, int Order>
struct eigen_dense {
    Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Order> numbers;

    explicit eigen_dense(const ref::matrix& table) : numbers(table.rows, table.columns) {
        fill_view(sy::as_view(numbers), table, S());
    }
    auto& argument() { return numbers; }
    bool gaps_intact() const { return true; }
};

struct row_major {
    template <class S>
    struct layout : eigen_dense<S, Eigen::RowMajor> {
        using eigen_dense<S, Eigen::RowMajor>::eigen_dense;
    };
};

struct column_major {
    template <class S>
    struct layout : eigen_dense<S, Eigen::ColMajor> {
        using eigen_dense<S, Eigen::ColMajor>::eigen_dense;
    };
};

/// A block in the middle of a larger matrix.
struct block {
    template <class S>
    struct layout {
        Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> around;
        index_t rows, columns;

        explicit layout(const ref::matrix& table)
            : around(decltype(around)::Constant(table.rows + 3, table.columns + 5, gap_number<S>())),
              rows(table.rows),
              columns(table.columns) {
            fill_view(sy::as_view(argument()), table, S());
        }
        auto argument() { return around.block(1, 3, rows, columns); }
        bool gaps_intact() {
            index_t gaps = 0;
            for (index_t i = 0; i < around.rows(); ++i) {
                for (index_t j = 0; j < around.cols(); ++j) {
                    const bool inside = i >= 1 && i < rows + 1 && j >= 3 && j < columns + 3;
                    gaps += !inside && around(i, j) == gap_number<S>() ? 1 : 0;
                }
            }
            return gaps == around.size() - rows * columns;
        }
    };
};

/// Numbers with a gap after each of them and after each row: `Show` makes the argument.
template <class S, class Show>
struct strided_numbers {
    std::vector<S> numbers;
    index_t rows, columns;

    explicit strided_numbers(const ref::matrix& table)
        : numbers(static_cast<std::size_t>(table.rows * row_stride(table.columns) + 1), gap_number<S>()),
          rows(table.rows),
          columns(table.columns) {
        fill_view(sy::as_view(argument()), table, S());
    }
    static index_t row_stride(index_t columns) { return Show::column_stride * columns + 3; }
    auto argument() { return Show::show(numbers.data() + 1, rows, columns, row_stride(columns)); }
    bool gaps_intact() {
        std::vector<S> copy = numbers;
        const sy::matrix_view<S> view(copy.data() + 1, rows, columns, row_stride(columns), Show::column_stride);
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < columns; ++j) view(i, j) = gap_number<S>();
        }
        for (const S number : copy) {
            if (!(number == gap_number<S>())) return false;
        }
        return true;
    }
};

struct show_map {
    static constexpr index_t column_stride = 2;
    template <class S>
    static auto show(S* first, index_t rows, index_t columns, index_t stride) {
        using strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
        using matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        return Eigen::Map<matrix, Eigen::Unaligned, strides>(first, rows, columns, strides(stride, column_stride));
    }
};

/// A pointer to unaligned rows.
struct show_pointer {
    static constexpr index_t column_stride = 1;
    template <class S>
    static auto show(S* first, index_t rows, index_t columns, index_t stride) {
        return sy::matrix_view<S>(first, rows, columns, stride, 1);
    }
};

struct map {
    template <class S>
    struct layout : strided_numbers<S, show_map> {
        using strided_numbers<S, show_map>::strided_numbers;
    };
};

struct raw_pointer {
    template <class S>
    struct layout : strided_numbers<S, show_pointer> {
        using strided_numbers<S, show_pointer>::strided_numbers;
    };
};

struct span {
    template <class S>
    struct layout {
        std::vector<S> numbers;
        index_t rows, columns;

        explicit layout(const ref::matrix& table)
            : numbers(static_cast<std::size_t>(table.rows * table.columns)), rows(table.rows), columns(table.columns) {
            fill_view(argument(), table, S());
        }
        auto argument() { return sy::view_of(std::span<S>(numbers), rows, columns); }
        bool gaps_intact() const { return true; }
    };
};

struct sequential {
    template <class F>
    static void each_policy(const F& f) {
        f(sy::seq);
    }
};

struct parallel {
    template <class F>
    static void each_policy([[maybe_unused]] const F& f) {
#if defined(_OPENMP)
        for (const int threads : {1, 2, 3, 8}) f(sy::par_on(sy::openmp{.threads = threads}));
#endif
    }
};

struct pooled {
    template <class F>
    static void each_policy(const F& f) {
        thread_pool pool(3);
        f(sy::par_on(pool));
    }
};

template <class Layout, class Policy, class Storage>
struct backend : Policy {
    using storage = Storage;
    using compute = sy::compute_t<Storage>;
    template <class S>
    using layout = typename Layout::template layout<S>;
};

template <class... Lists>
using join = decltype(std::tuple_cat(std::declval<Lists>()...));

template <class Layout, class Policy>
using every_scalar = std::tuple<backend<Layout, Policy, float>, backend<Layout, Policy, double>,
                                backend<Layout, Policy, Eigen::half>, backend<Layout, Policy, Eigen::bfloat16>>;
template <class Layout>
using every_policy =
    join<every_scalar<Layout, sequential>, every_scalar<Layout, parallel>, every_scalar<Layout, pooled>>;

using every_backend = join<every_policy<row_major>, every_policy<column_major>, every_policy<block>, every_policy<map>,
                           every_policy<raw_pointer>, every_policy<span>>;

/// Calls f with every CPU policy: the calling thread, 1, 2, 3 and 8 OpenMP threads, and a pool of three.
template <class F>
void for_each_policy(const F& f) {
    sequential::each_policy(f);
    parallel::each_policy(f);
    pooled::each_policy(f);
}

}  // namespace switchyard_test
