// A language model over bytes: the next byte from the `context` bytes before it.
//
//   h = concat(embedding[byte]) W_in + b_in                  [T, D]
//   h = h + layer(normalise(h))                              once a layer, dense or mixture of experts
//   p(next byte) = softmax(normalise(h) W_out + b_out)       [T, 256]
//
// normalise divides a row by its root mean square and multiplies by a learned gain. Forward and backward by hand; the
// loss is the mean of -log p, in nats.
//
// S is what is computed in, A what the layers' activations are stored in: float, double, or bfloat16 under S = float.
#pragma once

#include "moe_layer.hpp"
#include "text.hpp"

#include <cmath>
#include <memory>
#include <vector>

namespace study {

struct model_settings {
    index_t context = 16;    ///< bytes the next one is told from
    index_t embedding = 16;  ///< numbers per byte
    index_t width = 64;      ///< D
    std::vector<layer_settings> layers;
};

template <class S, class A = S>
class language_model {
  public:
    explicit language_model(const model_settings& settings, std::uint64_t seed) : settings_(settings) {
        embedding_ = learned.add(bytes, settings.embedding);
        w_in_ = learned.add(settings.context * settings.embedding, settings.width);
        b_in_ = learned.add(1, settings.width);
        for (const layer_settings& layer : settings.layers) {
            gains_.push_back(learned.add(1, settings.width));
            layers_.push_back(std::make_unique<moe_layer<S, A>>(learned, layer, settings.width));
        }
        gains_.push_back(learned.add(1, settings.width));
        w_out_ = learned.add(settings.width, bytes);
        b_out_ = learned.add(1, bytes);
        initialise(seed);
    }

    /// Mean loss in nats. What backward needs is kept.
    double forward(const thread_policy& threads, const batch& tokens, sy::run_mode mode) {
        resize(tokens.size());
        each_block(threads, [&](index_t first, index_t count) { embed(tokens, first, count); });
        bytes_.resize(static_cast<std::size_t>(tokens.size()));
        for (index_t t = 0; t < tokens.size(); ++t) {
            bytes_[static_cast<std::size_t>(t)] = tokens.context(t, tokens.length - 1);
        }
        for (const auto& layer : layers_) layer->see(bytes_);
        // [layers]
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            state& at = states_[i];
            each_block(threads, [&](index_t first, index_t count) { normalise(i, first, count); });
            mode.noise.stream = static_cast<std::uint32_t>(i);
            layers_[i]->forward(threads, at.normal, y_, mode);
            each_block(threads, [&](index_t first, index_t count) {
                states_[i + 1].h.middleRows(first, count) =
                    at.h.middleRows(first, count) + y_.middleRows(first, count).template cast<S>();
            });
        }
        // [/layers]
        each_block(threads, [&](index_t first, index_t count) {
            normalise(layers_.size(), first, count);
            predict(tokens, first, count);
        });
        return loss_.template cast<double>().sum() / static_cast<double>(tokens.size());
    }

    /// Gradients of the loss of the last forward, in `learned.gradients`.
    void backward(const thread_policy& threads, const batch& tokens) {
        predict_backward(threads);
        for (std::size_t i = layers_.size(); i-- > 0;) {
            layers_[i]->backward(threads, states_[i].normal, d_h_, d_normal_);
            normalise_backward(threads, i);
        }
        embed_backward(threads, tokens);
    }

    index_t layers() const { return static_cast<index_t>(layers_.size()); }
    const moe_layer<S, A>& layer(index_t i) const { return *layers_[static_cast<std::size_t>(i)]; }

    /// The loss of each token of the last forward, in nats.
    const column<S>& losses() const { return loss_; }

    /// The last auxiliary losses of all layers, weights included.
    double balance_loss() const {
        double sum = 0;
        for (const auto& layer : layers_) {
            sum += layer->is_routed() ? layer->plan().load_balancing_loss() : 0;
        }
        return sum;
    }

    /// Seconds spent in routing, dispatch and combine so far.
    double routing_seconds() const {
        double sum = 0;
        for (const auto& layer : layers_) {
            sum += layer->routing_time.seconds();
        }
        return sum;
    }

    parameters<S> learned;

  private:
    static constexpr index_t bytes = 256;
    static constexpr index_t block = 128;  ///< rows that a thread takes at once
    static constexpr index_t strip = 32;   ///< rows or columns of a weight's gradient that it does
    static constexpr index_t table_block = 512;

    /// What a layer, or the output, starts from.
    struct state {
        matrix<S> h;       ///< [T, D]
        matrix<A> normal;  ///< normalise(h)
        column<S> scale;   ///< 1 / root mean square of h's rows
    };

    void initialise(std::uint64_t seed) {
        // Each matrix has streams of its own. Scale = rows makes an embedding's variance 1.
        study::initialise(learned.value(embedding_), bytes, seed, 1000);
        study::initialise(learned.value(w_in_), 1.0, seed, 1001);
        study::initialise(learned.value(w_out_), 0.1, seed, 1002);
        for (const slice& gain : gains_) {
            learned.value(gain).setOnes();
        }
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            layers_[i]->initialise(seed, static_cast<std::uint32_t>(10000 * (i + 1)));
        }
    }

    void resize(index_t tokens) {
        tokens_ = tokens;
        embedded_.resize(tokens, settings_.context * settings_.embedding);
        states_.resize(layers_.size() + 1);
        for (state& at : states_) {
            at.h.resize(tokens, settings_.width);
            at.normal.resize(tokens, settings_.width);
            at.scale.resize(tokens);
        }
        y_.resize(tokens, settings_.width);
        d_logits_.resize(tokens, bytes);
        loss_.resize(tokens);
    }

    template <class F>
    void each_block(const thread_policy& threads, const F& f) const {
        for_each_piece(threads, tokens_, block, f);
    }

    void embed(const batch& tokens, index_t first, index_t count) {
        const auto table = learned.value(embedding_);
        for (index_t t = first; t < first + count; ++t) {
            for (index_t i = 0; i < settings_.context; ++i) {
                embedded_.row(t).segment(i * settings_.embedding, settings_.embedding) =
                    table.row(tokens.context(t, i));
            }
        }
        auto h = states_[0].h.middleRows(first, count);
        h.noalias() = embedded_.middleRows(first, count) * learned.value(w_in_);
        h.rowwise() += learned.value(b_in_).row(0);
    }

    void embed_backward(const thread_policy& threads, const batch& tokens) {
        for_each_piece(threads, embedded_.cols(), strip, [&](index_t first, index_t count) {
            learned.gradient(w_in_).middleRows(first, count).noalias() =
                embedded_.middleCols(first, count).transpose() * d_h_;
        });
        learned.gradient(b_in_) = d_h_.colwise().sum();
        // Tokens add into rows of the table that others add into: each block has a table of its own, and the tables are
        // added up in order.
        const index_t blocks = (tokens_ + table_block - 1) / table_block;
        tables_.resize(static_cast<std::size_t>(blocks));
        d_embedded_.resize(tokens_, embedded_.cols());
        for_each_piece(threads, tokens_, table_block, [&](index_t first, index_t count) {
            d_embedded_.middleRows(first, count).noalias() =
                d_h_.middleRows(first, count) * learned.value(w_in_).transpose();
            matrix<S>& table = tables_[static_cast<std::size_t>(first / table_block)];
            table.setZero(bytes, settings_.embedding);
            for (index_t t = first; t < first + count; ++t) {
                for (index_t i = 0; i < settings_.context; ++i) {
                    table.row(tokens.context(t, i)) +=
                        d_embedded_.row(t).segment(i * settings_.embedding, settings_.embedding);
                }
            }
        });
        auto sum = learned.gradient(embedding_);
        sum.setZero();
        for (const matrix<S>& table : tables_) {
            sum += table;
        }
    }

    void normalise(std::size_t i, index_t first, index_t count) {
        state& at = states_[i];
        const auto gain = learned.value(gains_[i]).row(0).array();
        for (index_t t = first; t < first + count; ++t) {
            at.scale[t] = S(1) / std::sqrt(at.h.row(t).squaredNorm() / S(settings_.width) + S(1e-6));
            at.normal.row(t) = (at.h.row(t).array() * at.scale[t] * gain).matrix().template cast<A>();
        }
    }

    /// d_h += what d_normal brings through normalise; with n = h scale, d_h = scale (g - n mean(g n)), g = d_normal
    /// gain.
    void normalise_backward(const thread_policy& threads, std::size_t i) {
        const state& at = states_[i];
        const auto gain = learned.value(gains_[i]).row(0).array();
        const index_t blocks = (tokens_ + block - 1) / block;
        d_gains_.resize(blocks, settings_.width);
        each_block(threads, [&](index_t first, index_t count) {
            auto d_gain = d_gains_.row(first / block);
            d_gain.setZero();
            for (index_t t = first; t < first + count; ++t) {
                const row<S> n = at.h.row(t) * at.scale[t];
                d_gain.array() += d_normal_.row(t).array() * n.array();
                const row<S> g = d_normal_.row(t).array() * gain;
                const S mean = g.dot(n) / S(settings_.width);
                d_h_.row(t) += (g - n * mean) * at.scale[t];
            }
        });
        learned.gradient(gains_[i]) = d_gains_.colwise().sum();
    }

    /// The loss of each token, and of the mean loss the gradient with respect to the logits: (p - [target]) / T.
    void predict(const batch& tokens, index_t first, index_t count) {
        operand<S> normal = states_.back().normal.middleRows(first, count).template cast<S>();
        auto logits = d_logits_.middleRows(first, count);
        logits.noalias() = normal * learned.value(w_out_);
        logits.rowwise() += learned.value(b_out_).row(0);
        for (index_t t = first; t < first + count; ++t) {
            auto mine = d_logits_.row(t);
            const S largest = mine.maxCoeff();
            const S target = mine[tokens.next(t)] - largest;
            mine = (mine.array() - largest).exp();
            const S sum = mine.sum();
            loss_[t] = std::log(sum) - target;
            mine *= S(1) / (sum * S(tokens_));
            mine[tokens.next(t)] -= S(1) / S(tokens_);
        }
    }

    void predict_backward(const thread_policy& threads) {
        d_h_.setZero(tokens_, settings_.width);
        d_normal_.resize(tokens_, settings_.width);
        each_block(threads, [&](index_t first, index_t count) {
            d_normal_.middleRows(first, count).noalias() =
                d_logits_.middleRows(first, count) * learned.value(w_out_).transpose();
        });
        operand<S> normal = states_.back().normal.template cast<S>();
        for_each_piece(threads, bytes, strip, [&](index_t first, index_t count) {
            const auto d_logits = d_logits_.middleCols(first, count);
            learned.gradient(w_out_).middleCols(first, count).noalias() = normal.transpose() * d_logits;
            learned.gradient(b_out_).middleCols(first, count) = d_logits.colwise().sum();
        });
        normalise_backward(threads, layers_.size());
    }

    model_settings settings_;
    slice embedding_, w_in_, b_in_, w_out_, b_out_;
    std::vector<slice> gains_;  // a layer each, and the output's
    std::vector<std::unique_ptr<moe_layer<S, A>>> layers_;

    // Kept from step to step.
    index_t tokens_ = 0;
    std::vector<std::uint8_t> bytes_;  // [T], the last of each context
    matrix<S> embedded_, d_embedded_;  // [T, context * embedding]
    std::vector<state> states_;        // a layer each, and the output's
    matrix<A> y_;                      // [T, D], what a layer gave
    matrix<S> d_h_, d_normal_;         // [T, D]
    matrix<S> d_gains_;                // [blocks, D]
    matrix<S> d_logits_;               // [T, 256]
    column<S> loss_;                   // [T]
    std::vector<matrix<S>> tables_;    // [256, embedding] a block of tokens
};

}  // namespace study
