// Cosine scores: how alike the directions of a token and an expert's embedding are. Any router takes them.
//
//   u = x P;   s_te = cos(u_t, w_e) / temperature          x[T, D], P[D, d], w[E, d] -> scores[T, E]
//   cos(a, b) = a / max(|a|, epsilon) . b / max(|b|, epsilon)
//
// Scores do not grow with tokens or embeddings, so that neither collapses (xMoE). P takes the tokens to few dimensions;
// without it, the other overload, u is given. torchscale holds w at the length 1.5, which is a factor of 1 /
// temperature here.
//
// Backward, with a = u / max(|u|, epsilon), b = w / (max(|w|, epsilon) temperature), s = a b^T:
//
//   d a = d s b,  d u = (d a - a (a . d a)) / |u|;   d b = d s^T a, and the same for w;   d temperature = - d b . b /
//   temperature
//
// where the part along a is not taken off below epsilon; then d x = d u P^T, d P = x^T d u. d temperature is a double
// in the policy's memory. Padding has score 0 in all columns, is not read, and has gradient 0.
//
// Products are those of score/projection.hpp, by its rules; scores and their gradient are in the compute type of x.
// O(T d (D + E)); T d + E d numbers of scratch forward, three times that backward, and T E more with a mask. Nothing
// waits. Outputs lie apart from inputs and from each other.
//
// Chi et al. 2022, "On the Representation Collapse of Sparse Mixture of Experts", arXiv 2204.09179.
#pragma once

#include <switchyard/backend/policy.hpp>
#include <switchyard/core/arguments.hpp>
#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/overlap.hpp>
#include <switchyard/core/rounding.hpp>
#include <switchyard/core/scalar_traits.hpp>
#include <switchyard/core/sizes.hpp>
#include <switchyard/core/stored.hpp>
#include <switchyard/core/workspace.hpp>
#include <switchyard/score/noise.hpp>
#include <switchyard/score/projection.hpp>

#include <cmath>
#include <type_traits>

namespace switchyard {

struct cosine_settings {
    double temperature = 0.07;  ///< > 0
    double epsilon = 1e-12;     ///< > 0, the least length
    token_mask mask{};
};

inline namespace SWITCHYARD_TARGET {

namespace detail {

/// A row, its length at least epsilon, to the length `scale`; or as a column of the output. Rows left out become 0.
template <class S, class Storage, class Space>
struct normalise_row {
    matrix_view<const Storage, Space> from;
    token_mask mask;
    S epsilon;
    S scale;
    matrix_view<S, Space> to;
    S* inverse;  ///< of the length, [rows]; 0 with a sign below epsilon's: no direction is taken off

    SWITCHYARD_HD void operator()(index_t row) const {
        S squares = 0;
        const bool is_read = mask(row);
        for (index_t j = 0; j < from.columns && is_read; ++j) {
            const S number = load_as<S>(from(row, j));
            squares += rounded_times(number, number);
        }
        const S length = std::sqrt(squares);
        inverse[row] = length > epsilon ? S(1) / length : -S(1) / epsilon;
        const S factor = (length > epsilon ? inverse[row] : -inverse[row]) * scale;
        for (index_t j = 0; j < from.columns; ++j) {
            to(row, j) = is_read ? load_as<S>(from(row, j)) * factor : S(0);
        }
    }
};

/// The gradient of a row from that of its normalised one, `unit` of the length `scale`.
template <class S, class Storage, class Space>
struct normalise_row_backward {
    matrix_view<const S, Space> unit;
    matrix_view<const S, Space> d_unit;
    const S* inverse;
    S scale;
    matrix_view<Storage, Space> out;

    SWITCHYARD_HD void operator()(index_t row) const {
        const bool is_long = inverse[row] > S(0);
        S along = 0;
        for (index_t j = 0; j < unit.columns && is_long; ++j) {
            along += rounded_times(unit(row, j), d_unit(row, j));
        }
        along = along / scale / scale;
        const S factor = (is_long ? inverse[row] : -inverse[row]) * scale;
        for (index_t j = 0; j < unit.columns; ++j) {
            const S d = (d_unit(row, j) - rounded_times(along, unit(row, j))) * factor;
            out(row, j) = store_scalar<Storage>(static_cast<compute_t<Storage>>(d));
        }
    }
};

/// The gradients of scores, 0 in padding, whatever stands there.
template <class S, class Space>
struct copy_counted_rows {
    matrix_view<const S, Space> from;
    token_mask mask;
    matrix_view<S, Space> to;

    SWITCHYARD_HD void operator()(index_t i) const {
        const index_t row = i / to.columns;
        to(row, i % to.columns) = mask(row) ? from(row, i % to.columns) : S(0);
    }
};

template <class S, class Space>
struct differentiate_temperature {
    matrix_view<const S, Space> unit;
    matrix_view<const S, Space> d_unit;
    double temperature;
    double* out;

    SWITCHYARD_HD void operator()(index_t) const {
        double sum = 0;
        for (index_t i = 0; i < unit.rows; ++i) {
            for (index_t j = 0; j < unit.columns; ++j) {
                sum += rounded_times(static_cast<double>(unit(i, j)), static_cast<double>(d_unit(i, j)));
            }
        }
        *out = -sum / temperature;
    }
};

/// Both tables normalised, in scratch.
template <class S, class Space>
struct unit_rows {
    matrix_view<S, Space> tokens;   ///< [T, d]
    matrix_view<S, Space> experts;  ///< [E, d], of the length 1 / temperature; its transpose is what tokens meet
    S* token_inverse;
    S* expert_inverse;

    matrix_view<const S, Space> weights() const { return transposed(const_view(experts)); }
};

/// Settings that numbers of the type S can hold, and a mask of as many tokens.
template <class S, class Policy>
void require_settings(const cosine_settings& settings, index_t tokens) {
    require(settings.temperature > 0 && std::isfinite(settings.temperature), "temperature = ", settings.temperature,
            " must be finite and more than 0");
    require(settings.epsilon > 0 && std::isfinite(settings.epsilon), "epsilon = ", settings.epsilon,
            " must be finite and more than 0");
    const S inverse = S(1) / static_cast<S>(settings.epsilon);
    require(std::isfinite(inverse) && inverse > S(0), "epsilon = ", settings.epsilon,
            ": its inverse is beyond the type of the scores");
    require_mask<Policy>(settings.mask, tokens);
}

template <class S, class Policy, class U, class W, class Space, class Workspace>
unit_rows<S, Space> unit_rows_of(const Policy& policy, const matrix_view<const U, Space>& u,
                                 const matrix_view<const W, Space>& w, const cosine_settings& settings,
                                 Workspace& scratch) {
    require_settings<S, Policy>(settings, u.rows);
    require((u.data != nullptr || u.rows == 0) && w.data != nullptr, "tokens and embeddings must not be null");
    require(u.columns >= 1 && w.columns == u.columns, "w is ", w.rows, " x ", w.columns,
            ": it must have d = ", u.columns, " columns, the width of what it is compared with");
    require(w.rows >= 1, "w has E = 0 experts: there must be at least one");
    const auto take = [&](index_t rows, index_t columns) {
        return matrix_view<S, Space>{scratch.template take<S>(product_of_sizes("numbers", rows, columns)), rows,
                                     columns};
    };
    const unit_rows<S, Space> made{take(u.rows, u.columns), take(w.rows, w.columns), scratch.template take<S>(u.rows),
                                   scratch.template take<S>(w.rows)};
    const auto epsilon = static_cast<S>(settings.epsilon);
    for_each_index(policy, u.rows,
                   normalise_row<S, U, Space>{u, settings.mask, epsilon, S(1), made.tokens, made.token_inverse});
    for_each_index(policy, w.rows,
                   normalise_row<S, W, Space>{
                       w, {}, epsilon, static_cast<S>(1 / settings.temperature), made.experts, made.expert_inverse});
    return made;
}

}  // namespace detail

/// u[T, d], w[E, d] -> scores[T, E].
template <class Policy, class U, class W, class Scores, class Workspace>
void cosine_scores(const Policy& policy, const U& u, const W& w, const cosine_settings& settings, Scores&& scores,
                   Workspace& scratch) {
    const auto tokens = detail::token_view(u);
    const auto embeddings = detail::input_view(w);
    const auto out = detail::output_view(scores);
    using out_view = std::remove_const_t<decltype(out)>;
    using S = typename out_view::value_type;
    require_space<Policy, std::remove_const_t<decltype(tokens)>, std::remove_const_t<decltype(embeddings)>, out_view>();
    static_assert(std::is_same_v<S, compute_t<detail::number_of<U>>>,
                  "switchyard: cosine scores are in the compute type of the tokens");
    require(out.rows == tokens.rows && out.columns == embeddings.rows, "scores is ", out.rows, " x ", out.columns,
            " for T = ", tokens.rows, " tokens and E = ", embeddings.rows, " experts");
    require_apart<Policy>("scores", out, "u", tokens, "w", embeddings);
    const auto scope = scratch.open();
    const auto unit = detail::unit_rows_of<S>(policy, tokens, embeddings, settings, scratch);
    project(policy, const_view(unit.tokens), unit.weights(), input_noise{}, settings.mask, out, scratch);
}

/// d_scores[T, E] -> d_u[T, d], d_w[E, d], *d_temperature (or null), with the settings of the forward call.
template <class Policy, class U, class W, class Gradients, class DU, class DW, class Workspace>
void cosine_scores_backward(const Policy& policy, const U& u, const W& w, const cosine_settings& settings,
                            const Gradients& d_scores, DU&& d_u, DW&& d_w, double* d_temperature, Workspace& scratch) {
    const auto tokens = detail::token_view(u);
    const auto embeddings = detail::input_view(w);
    const auto given = detail::input_view(d_scores);
    const auto to_u = detail::output_view(d_u);
    const auto to_w = detail::output_view(d_w);
    using given_view = std::remove_const_t<decltype(given)>;
    using u_view = std::remove_const_t<decltype(to_u)>;
    using w_view = std::remove_const_t<decltype(to_w)>;
    using space = typename u_view::space;
    using S = std::remove_const_t<typename given_view::value_type>;
    require_space<Policy, std::remove_const_t<decltype(tokens)>, std::remove_const_t<decltype(embeddings)>, given_view,
                  u_view, w_view>();
    static_assert(std::is_same_v<S, compute_t<detail::number_of<U>>>,
                  "switchyard: gradients of cosine scores are in the compute type of the tokens");
    require(given.rows == tokens.rows && given.columns == embeddings.rows, "d_scores is ", given.rows, " x ",
            given.columns, " for T = ", tokens.rows, " tokens and E = ", embeddings.rows, " experts");
    require_same_shape("d_u", to_u, "u", tokens);
    require_same_shape("d_w", to_w, "w", embeddings);
    require_apart<Policy>("d_u", to_u, "u", tokens, "w", embeddings, "d_scores", given, "d_w", to_w);
    require_apart<Policy>("d_w", to_w, "u", tokens, "w", embeddings, "d_scores", given);
    const auto scope = scratch.open();
    const auto unit = detail::unit_rows_of<S>(policy, tokens, embeddings, settings, scratch);
    const matrix_view<S, space> d_tokens{scratch.template take<S>(unit.tokens.size()), tokens.rows, tokens.columns};
    const matrix_view<S, space> d_weights{scratch.template take<S>(unit.experts.size()), embeddings.columns,
                                          embeddings.rows};
    matrix_view<const S, space> counted = given;
    if (settings.mask.data != nullptr) {
        const index_t count = product_of_sizes("gradients", given.rows, given.columns);
        const matrix_view<S, space> copied{scratch.template take<S>(count), given.rows, given.columns};
        for_each_index(policy, count, detail::copy_counted_rows<S, space>{given, settings.mask, copied});
        counted = const_view(copied);
    }
    project_backward(policy, const_view(unit.tokens), unit.weights(), input_noise{}, settings.mask, counted, d_tokens,
                     d_weights, scratch);
    const auto d_experts = transposed(const_view(d_weights));
    for_each_index(policy, tokens.rows,
                   detail::normalise_row_backward<S, typename u_view::value_type, space>{
                       const_view(unit.tokens), const_view(d_tokens), unit.token_inverse, S(1), to_u});
    for_each_index(
        policy, embeddings.rows,
        detail::normalise_row_backward<S, typename w_view::value_type, space>{
            const_view(unit.experts), d_experts, unit.expert_inverse, static_cast<S>(1 / settings.temperature), to_w});
    if (d_temperature != nullptr) {
        for_each_index(policy, 1,
                       detail::differentiate_temperature<S, space>{const_view(unit.experts), d_experts,
                                                                   settings.temperature, d_temperature});
    }
}

/// x[T, D], p[D, d], w[E, d] -> scores[T, E].
template <class Policy, class X, class P, class W, class Scores, class Workspace>
void cosine_scores(const Policy& policy, const X& x, const P& p, const W& w, const cosine_settings& settings,
                   Scores&& scores, Workspace& scratch) {
    const auto tokens = detail::token_view(x);
    const auto weights = detail::input_view(p);
    using S = compute_t<detail::number_of<X>>;
    using space = typename std::remove_const_t<decltype(tokens)>::space;
    require_projection(tokens, weights);
    detail::require_settings<S, Policy>(settings, tokens.rows);
    require_apart<Policy>("scores", detail::output_view(scores), "x", tokens, "p", weights);
    const auto scope = scratch.open();
    const matrix_view<S, space> u{scratch.template take<S>(product_of_sizes("numbers", tokens.rows, weights.columns)),
                                  tokens.rows, weights.columns};
    project(policy, tokens, weights, input_noise{}, settings.mask, u, scratch);
    cosine_scores(policy, u, w, settings, scores, scratch);
}

/// d_scores[T, E] -> d_x[T, D], d_p[D, d], d_w[E, d], *d_temperature (or null).
template <class Policy, class X, class P, class W, class Gradients, class DX, class DP, class DW, class Workspace>
void cosine_scores_backward(const Policy& policy, const X& x, const P& p, const W& w, const cosine_settings& settings,
                            const Gradients& d_scores, DX&& d_x, DP&& d_p, DW&& d_w, double* d_temperature,
                            Workspace& scratch) {
    const auto tokens = detail::token_view(x);
    const auto weights = detail::input_view(p);
    const auto to_x = detail::output_view(d_x);
    const auto to_p = detail::output_view(d_p);
    using S = compute_t<detail::number_of<X>>;
    using space = typename std::remove_const_t<decltype(tokens)>::space;
    require_projection(tokens, weights);
    detail::require_settings<S, Policy>(settings, tokens.rows);
    require_same_shape("d_x", to_x, "x", tokens);
    require_same_shape("d_p", to_p, "p", weights);
    const auto embeddings = detail::input_view(w);
    const auto given = detail::input_view(d_scores);
    const auto to_w = detail::output_view(d_w);
    require_apart<Policy>("d_x", to_x, "x", tokens, "p", weights, "w", embeddings, "d_scores", given, "d_p", to_p,
                          "d_w", to_w);
    require_apart<Policy>("d_p", to_p, "x", tokens, "p", weights, "w", embeddings, "d_scores", given, "d_w", to_w);
    require_apart<Policy>("d_w", to_w, "x", tokens, "p", weights);
    const auto scope = scratch.open();
    const index_t count = product_of_sizes("numbers", tokens.rows, weights.columns);
    const matrix_view<S, space> u{scratch.template take<S>(count), tokens.rows, weights.columns};
    const matrix_view<S, space> d_u{scratch.template take<S>(count), tokens.rows, weights.columns};
    project(policy, tokens, weights, input_noise{}, settings.mask, u, scratch);
    cosine_scores_backward(policy, u, w, settings, d_scores, d_u, d_w, d_temperature, scratch);
    project_backward(policy, tokens, weights, input_noise{}, settings.mask, const_view(d_u), to_x, to_p, scratch);
}

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
