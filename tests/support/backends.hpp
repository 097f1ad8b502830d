// What typed tests run over: layout of the numbers x policy x scalar.
//
//   TEST_CASE_TEMPLATE_DEFINE("...", B, id) { typename B::storage; typename B::template layout<T> m(table);
//   B::each_policy(f); } TEST_CASE_TEMPLATE_APPLY(id, every_backend);
//
// A layout holds the numbers of a table and shows them as an argument of the library's functions; where it leaves gaps
// between them, the gaps hold a number of their own, and `gaps_intact()` tells whether somebody wrote there.
#pragma once

#include "support/covers.hpp"
#include "support/scores.hpp"
#include "support/thread_pool.hpp"

#include <switchyard/backend/eigen.hpp>
#include <switchyard/backend/policy.hpp>

#include <memory>
#include <span>
#include <tuple>
#include <type_traits>
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

/// The numbers of a view, stored as anything.
template <class S>
ref::matrix table_of_view(const sy::matrix_view<S>& view) {
    ref::matrix copy(view.rows, view.columns);
    for (index_t i = 0; i < view.rows; ++i) {
        for (index_t j = 0; j < view.columns; ++j) copy(i, j) = static_cast<double>(sy::load_scalar(view(i, j)));
    }
    return copy;
}

template <class S>
void fill_view(const sy::matrix_view<S>& view, const ref::matrix& numbers) {
    for (index_t i = 0; i < numbers.rows; ++i) {
        for (index_t j = 0; j < numbers.columns; ++j) view(i, j) = stored_number<S>(numbers(i, j));
    }
}

template <class S, int Order>
struct eigen_dense {
    Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Order> numbers;

    explicit eigen_dense(const ref::matrix& table) : numbers(table.rows, table.columns) { fill_view(view(), table); }
    auto& argument() { return numbers; }
    sy::matrix_view<S> view() { return sy::as_view(numbers); }
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
            fill_view(view(), table);
        }
        auto argument() { return around.block(1, 3, rows, columns); }
        sy::matrix_view<S> view() { return sy::as_view(argument()); }
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
        fill_view(view(), table);
    }
    static index_t row_stride(index_t columns) { return Show::column_stride * columns + 3; }
    auto argument() { return Show::show(numbers.data() + 1, rows, columns, row_stride(columns)); }
    sy::matrix_view<S> view() { return sy::as_view(argument()); }
    bool gaps_intact() {
        std::vector<S> copy = numbers;
        const sy::matrix_view<S> inside(copy.data() + 1, rows, columns, row_stride(columns), Show::column_stride);
        for (index_t i = 0; i < rows; ++i) {
            for (index_t j = 0; j < columns; ++j) inside(i, j) = gap_number<S>();
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
            fill_view(view(), table);
        }
        auto argument() { return sy::view_of(std::span<S>(numbers), rows, columns); }
        sy::matrix_view<S> view() { return argument(); }
        bool gaps_intact() const { return true; }
    };
};

/// Any pool behind one type, so that the library is compiled once for all of them: six layouts x four scalars x every
/// policy would otherwise take minutes. The policies' own types are compiled and run by the determinism tests.
class any_pool {
  public:
    template <class Run>
    explicit any_pool(Run& run)
        : pool_(&run), run_([](void* pool, index_t blocks, void* context, block_function call) {
              (*static_cast<Run*>(pool))(blocks, [=](index_t block) { call(context, block); });
          }) {}

    template <class F>
    void parallel_for(index_t blocks, F&& f) {
        using function = std::remove_reference_t<F>;
        run_(pool_, blocks, const_cast<void*>(static_cast<const void*>(std::addressof(f))),
             [](void* context, index_t block) { (*static_cast<function*>(context))(block); });
    }

  private:
    using block_function = void (*)(void* context, index_t block);
    void* pool_;
    void (*run_)(void*, index_t, void*, block_function);
};

template <class Layout, class Storage>
struct backend {
    using storage = Storage;
    using compute = sy::compute_t<Storage>;
    template <class S>
    using layout = typename Layout::template layout<S>;

    /// f(policy) for the calling thread, 1, 2, 3 and 8 OpenMP threads, and a pool of three.
    template <class F>
    static void each_policy(const F& f) {
        const auto with = [&](auto run) {
            any_pool pool(run);
            f(sy::par_on(pool));
        };
        with([](index_t blocks, auto call) { sy::seq.parallel_for(blocks, call); });
#if defined(_OPENMP)
        for (const int threads : {1, 2, 3, 8}) {
            with([=](index_t blocks, auto call) { sy::openmp{.threads = threads}.parallel_for(blocks, call); });
        }
#endif
        thread_pool three(3);
        with([&](index_t blocks, auto call) { three.parallel_for(blocks, call); });
    }
};

template <class... Lists>
using join = decltype(std::tuple_cat(std::declval<Lists>()...));

template <class Layout>
using every_scalar = std::tuple<backend<Layout, float>, backend<Layout, double>, backend<Layout, Eigen::half>,
                                backend<Layout, Eigen::bfloat16>>;

using every_backend = join<every_scalar<row_major>, every_scalar<column_major>, every_scalar<block>, every_scalar<map>,
                           every_scalar<raw_pointer>, every_scalar<span>>;

/// Calls f with every CPU policy: the calling thread, 1, 2, 3 and 8 OpenMP threads, and a pool of three.
template <class F>
void for_each_policy(const F& f) {
    f(sy::seq);
#if defined(_OPENMP)
    for (const int threads : {1, 2, 3, 8}) f(sy::par_on(sy::openmp{.threads = threads}));
#endif
    thread_pool pool(3);
    f(sy::par_on(pool));
}

}  // namespace switchyard_test
