// Plans and rows to move with them.
#pragma once

#include "support/routed.hpp"

#include <switchyard/reference/dispatch.hpp>
#include <switchyard/router/top_k.hpp>

#include <optional>

namespace switchyard_test {

/// A plan of the library and the same one of the reference, gates taken from the library so that products agree.
template <class S>
struct plan_pair {
    sy::plan<S> plan;
    ref::plan want;
};

template <class S>
plan_pair<S> random_plan(index_t tokens, index_t experts, index_t k, std::optional<double> factor, std::uint64_t seed,
                         const ref::mask_list& mask = {}) {
    const sy::top_k_router router{.k = k, .capacity = {.factor = factor}};
    const auto scores = gaussian_scores(tokens, experts, seed);
    plan_pair<S> pair{routed<S>(router, scores, training_with(mask)),
                      ref::route_scores(reference_of(router, true), scores, mask)};
    pair.want.gates = gates_of(pair.plan.view());
    return pair;
}

/// A matrix of the library filled with one number.
template <class S>
sy::matrix<S> filled_matrix(index_t rows, index_t columns, double number) {
    return stored<S>(ref::matrix(rows, columns, number));
}

template <class S>
ref::matrix table_of(const sy::matrix<S>& m) {
    return ref::matrix_from(m.view());
}

}  // namespace switchyard_test
