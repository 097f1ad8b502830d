// The experts of a layer: E networks of two matrices, each on its own rows.
//
//   rows_in[R, D], rows offsets[e] .. offsets[e + 1] are expert e's   ->   rows_out = relu(rows_in W1[e] + b1[e]) W2[e]
//
// A dense layer is one expert that owns all rows. Threads share the work by pieces of an expert's rows, and in the
// weights' gradients, sums over all rows of an expert, by pieces of its hidden units: every sum has one order.
//
// S is what is computed in; A what activations are stored in (S itself, or a 16-bit type).
#pragma once

#include "parameters.hpp"
#include "threads.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace study {

/// A matrix to compute with: what is stored in S itself is referred to, anything else is converted (`cast` does neither
/// more).
template <class S>
using operand = const Eigen::Ref<const matrix<S>>;

template <class S, class A>
class experts {
  public:
    using offsets_view = std::span<const std::int64_t>;

    experts(parameters<S>& all, index_t number, index_t width, index_t hidden) : all_(all), hidden_size_(hidden) {
        for (index_t e = 0; e < number; ++e) {
            expert_.push_back({all.add(width, hidden), all.add(1, hidden), all.add(hidden, width)});
        }
    }

    index_t number() const { return static_cast<index_t>(expert_.size()); }

    void initialise(std::uint64_t seed, std::uint32_t stream) {
        for (const weights& w : expert_) {
            study::initialise(all_.value(w.first), 2.0, seed, ++stream);
            study::initialise(all_.value(w.second), 1.0, seed, ++stream);
        }
    }

    // [forward]
    /// `rows_in` is kept by the caller for backward; the hidden activations are kept here.
    void forward(const thread_policy& threads, offsets_view offsets, const matrix<A>& rows_in, matrix<A>& rows_out) {
        hidden_.resize(rows_in.rows(), hidden_size_);
        cut(offsets);
        threads.parallel_for(pieces(), [&](index_t i) {
            const auto [e, first, count] = piece_[static_cast<std::size_t>(i)];
            const weights& w = expert_[static_cast<std::size_t>(e)];
            operand<S> in = rows_in.middleRows(first, count).template cast<S>();
            matrix<S> sum(count, hidden_size_);
            sum.noalias() = in * all_.value(w.first);
            sum = (sum.rowwise() + all_.value(w.bias).row(0)).cwiseMax(S(0));
            hidden_.middleRows(first, count) = sum.template cast<A>();
            operand<S> hidden = hidden_.middleRows(first, count).template cast<S>();
            if constexpr (std::is_same_v<S, A>) {
                rows_out.middleRows(first, count).noalias() = hidden * all_.value(w.second);
            } else {
                rows_out.middleRows(first, count) = (hidden * all_.value(w.second)).template cast<A>();
            }
        });
    }
    // [/forward]

    // [backward]
    /// Gradients of the weights are written, not added.
    void backward(const thread_policy& threads, offsets_view offsets, const matrix<A>& rows_in,
                  const matrix<S>& d_rows_out, matrix<S>& d_rows_in) {
        d_hidden_.resize(rows_in.rows(), hidden_size_);
        threads.parallel_for(pieces(), [&](index_t i) {
            const auto [e, first, count] = piece_[static_cast<std::size_t>(i)];
            const weights& w = expert_[static_cast<std::size_t>(e)];
            auto d_hidden = d_hidden_.middleRows(first, count);
            d_hidden.noalias() = d_rows_out.middleRows(first, count) * all_.value(w.second).transpose();
            operand<S> hidden = hidden_.middleRows(first, count).template cast<S>();
            d_hidden = (hidden.array() > S(0)).select(d_hidden, S(0));
            d_rows_in.middleRows(first, count).noalias() = d_hidden * all_.value(w.first).transpose();
        });
        const index_t parts = (hidden_size_ + units - 1) / units;
        threads.parallel_for(number() * parts, [&](index_t i) {
            const index_t e = i / parts;
            const index_t unit = i % parts * units;
            const index_t count = std::min(units, hidden_size_ - unit);
            const index_t first = offsets[static_cast<std::size_t>(e)];
            const index_t rows = offsets[static_cast<std::size_t>(e) + 1] - first;
            const weights& w = expert_[static_cast<std::size_t>(e)];
            operand<S> in = rows_in.middleRows(first, rows).template cast<S>();
            operand<S> hidden = hidden_.block(first, unit, rows, count).template cast<S>();
            const auto d_hidden = d_hidden_.block(first, unit, rows, count);
            all_.gradient(w.first).middleCols(unit, count).noalias() = in.transpose() * d_hidden;
            all_.gradient(w.bias).middleCols(unit, count) = d_hidden.colwise().sum();
            all_.gradient(w.second).middleRows(unit, count).noalias() =
                hidden.transpose() * d_rows_out.middleRows(first, rows);
        });
    }
    // [/backward]

  private:
    static constexpr index_t rows_a_piece = 128;
    static constexpr index_t units = 64;  ///< hidden units of a piece of the weights' gradients

    struct weights {
        slice first;   ///< [D, H]
        slice bias;    ///< [1, H]
        slice second;  ///< [H, D]
    };
    struct piece {
        index_t expert;
        index_t first;
        index_t count;
    };

    void cut(offsets_view offsets) {
        piece_.clear();
        for (index_t e = 0; e < number(); ++e) {
            const index_t last = offsets[static_cast<std::size_t>(e) + 1];
            for (index_t first = offsets[static_cast<std::size_t>(e)]; first < last; first += rows_a_piece) {
                piece_.push_back({e, first, std::min(rows_a_piece, last - first)});
            }
        }
    }
    index_t pieces() const { return static_cast<index_t>(piece_.size()); }

    parameters<S>& all_;
    index_t hidden_size_;
    std::vector<weights> expert_;
    std::vector<piece> piece_;
    matrix<A> hidden_;    // [R, H]
    matrix<S> d_hidden_;  // [R, H]
};

}  // namespace study
