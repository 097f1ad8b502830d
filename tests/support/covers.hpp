// covers<operation("dispatch"), operation("combine")>(policy): this test case has exercised these operations on this
// policy, and checked them. claims.hpp says what becomes of it.
#pragma once

#include "support/claims.hpp"

#include <switchyard/backend/policy.hpp>

#include <type_traits>

namespace switchyard_test {

/// Where a policy runs: on the CPU, or its kernels on the executor or on a GPU. The header of another device says it
/// for its own policy.
template <class Policy>
inline constexpr matrix_column column_of = [] {
    if constexpr (std::is_same_v<Policy, switchyard::seq_policy>) {
        return matrix_column::eigen_seq;
    } else if constexpr (switchyard::host_policy<Policy>) {
        return matrix_column::eigen_par;
    } else {
        static_assert(Policy::runs_kernels, "column_of<Policy> says which column of the support matrix this is");
#if defined(__CUDACC__)
        return matrix_column::cuda_run;
#else
        return matrix_column::cuda_emulated;
#endif
    }
}();

/// Present in every program that holds a `covers` of it.
template <matrix_column Column, std::size_t Operation>
inline const bool is_compiled = compiled_claims().emplace(Column, Operation).second;

template <std::size_t... Operations, class Policy>
void covers(const Policy&) {
    constexpr matrix_column where = column_of<Policy>;
    (static_cast<void>(&is_compiled<where, Operations>), ...);
    (claims_of_test_case().emplace(where, Operations), ...);
}

}  // namespace switchyard_test
