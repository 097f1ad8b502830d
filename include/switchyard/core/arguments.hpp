// Matrix arguments of public functions: an unsuitable one does not compile, and the error message says why.
//
// Functions take their matrices as any type and view them here, so that a wrong one gives one message instead of a list
// of overloads. An empty view of floats replaces a refused argument, so that no further errors follow.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/scalar_traits.hpp>

#include <type_traits>

namespace switchyard {
namespace detail {

template <class M>
SWITCHYARD_ALWAYS_INLINE constexpr auto checked_view(M&& m) {
    if constexpr (!matrix_like<M>) {
        static_assert(matrix_like<M>,
                      "switchyard: an argument cannot be viewed as a matrix. It must be a switchyard::matrix or "
                      "matrix_view, an Eigen matrix, vector, map or block, or a type with a view_access of its own. "
                      "Expressions and indexed views have no memory to point at: evaluate them first, as in "
                      "(a + b).eval()");
        return matrix_view<float>();
    } else if constexpr (!storage_scalar<scalar_of<M>>) {
        static_assert(storage_scalar<scalar_of<M>>,
                      "switchyard: an argument's numbers must be float, double, half, bfloat16 or another type with "
                      "scalar_traits; integers are converted first, as in m.cast<float>().eval()");
        return matrix_view<float, space_of<M>>();
    } else {
        return as_view(m);
    }
}

/// A matrix that is read.
template <class M>
SWITCHYARD_ALWAYS_INLINE constexpr auto input_view(const M& m) {
    return const_view(checked_view(m));
}

/// A matrix that is written.
template <class M>
SWITCHYARD_ALWAYS_INLINE constexpr auto output_view(M&& m) {
    const auto view = checked_view(m);
    using element = std::remove_pointer_t<decltype(view.data)>;
    static_assert(!std::is_const_v<element>, "switchyard: an output is constant: it cannot be written");
    if constexpr (std::is_const_v<element>) {
        return matrix_view<std::remove_const_t<element>, typename decltype(checked_view(m))::space>();
    } else {
        return view;
    }
}

/// Scores or tokens: a row for each token. A type that has one column by itself is a list of numbers of one token.
template <class M>
SWITCHYARD_ALWAYS_INLINE constexpr auto token_view(const M& m) {
    constexpr bool is_column = requires { requires view_access<M>::is_column; };
    static_assert(!is_column,
                  "switchyard: scores and tokens have a row for each token, and this type has one column whatever its "
                  "size. One token is a row: pass v.transpose(). Tokens with one number each: pass a matrix type");
    return input_view(m);
}

/// The view of an input, its numbers and where they lie.
template <class M>
using input_type = decltype(input_view(std::declval<const M&>()));
template <class M>
using number_of = typename input_type<M>::value_type;

}  // namespace detail
}  // namespace switchyard
