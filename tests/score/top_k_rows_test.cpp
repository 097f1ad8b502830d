// Top-k's row pass with every instruction set: rows in tiles, in groups and alone.
#include "support/routed.hpp"

#include <switchyard/router/top_k.hpp>

#include <doctest/doctest.h>

#include <algorithm>

using namespace switchyard_test;

TEST_CASE_TEMPLATE("top-k: a row alone gives the bits that it gives in a batch", S, float, double) {
    for (const index_t experts : {3, 8, 33, 64, 130, 300}) {
        for (const index_t k : {1, 2, 3, 5, 8, 11, 16, 17, 30}) {
            if (k > experts) continue;
            for (const bool renormalize : {false, true}) {
                for (const auto kind : {score_kind::gaussian, score_kind::small_integers}) {
                    const auto scores = draw_scores(kind, 50, experts, 17, kind == score_kind::gaussian ? 30 : 0);
                    const sy::top_k_router router{.k = k, .renormalize = renormalize, .capacity = {}};
                    for (const sy::run_mode& mode : {sy::run_mode(sy::inference{}), sy::run_mode(sy::training{})}) {
                        if (mode.is_training && renormalize && k == 1) continue;
                        sy::top_k_router dropping = router;
                        dropping.inference_capacity.number = 50;  // a token with nothing allowed is no error
                        dropping.capacity.number = 50;
                        const auto all = routed<S>(dropping, scores, mode);
                        bool same = true;
                        for (index_t t = 0; t < 50; ++t) {
                            ref::matrix row(1, experts);
                            for (index_t e = 0; e < experts; ++e) row(0, e) = scores(t, e);
                            const auto one = routed<S>(dropping, row, mode);
                            for (index_t c = 0; c < k; ++c) {
                                same = same && one.expert()(0, c) == all.expert()(t, c) &&
                                       one.gate()(0, c) == all.gate()(t, c);
                            }
                            if (mode.is_training) {
                                same = same && one.view().row_sum[0] == all.view().row_sum[t] &&
                                       one.view().row_maximum[0] == all.view().row_maximum[t];
                            }
                        }
                        CHECK(same);
                    }
                }
            }
        }
    }
}
