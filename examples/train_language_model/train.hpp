// One run: a model of one kind, from one seed, trained and watched.
#pragma once

#include "options.hpp"
#include "parameters.hpp"
#include "text.hpp"
#include "threads.hpp"

#include <functional>
#include <string>
#include <vector>

namespace study {

/// What a run trains.
struct run_settings {
    contender kind = contender::dense;
    precision stored = precision::float32;
    std::uint64_t seed = 1;

    /// "switch", or "switch pure_bfloat16".
    std::string name() const;
};

/// How the experts of a layer were loaded, over some training steps.
struct load_record {
    std::vector<double> share;            ///< [E] of all choices, before capacity
    double coefficient_of_variation = 0;  ///< means of the steps' numbers
    double max_over_mean = 0;
    double dropped_share = 0;
};

/// What was seen at one step.
struct evaluation {
    index_t step = 0;                    ///< steps trained so far
    double seconds = 0;                  ///< of training so far
    double training_bits = 0;            ///< per byte, mean since the last evaluation
    double validation_bits = 0;          ///< per byte
    std::vector<load_record> load = {};  ///< a layer each, since the last evaluation; empty if dense
};

/// A token of the held-out text that an expert got.
struct example {
    std::string before;  ///< text that ends with the token's byte
    std::string after;   ///< text that follows; its first byte is the one to be told
};

/// What the experts of a trained layer do with the held-out text.
struct layer_record {
    matrix<float> scores;                      ///< [T, E], the router's
    matrix<index_t> bytes;                     ///< [E, 256]: how often the token's byte went to the expert
    std::vector<std::vector<example>> picked;  ///< [E]
    double coefficient_of_variation = 0;       ///< of the load at inference
};

struct run_record {
    run_settings settings;
    index_t parameters = 0;
    std::vector<evaluation> evaluations = {};
    std::vector<load_record> late_load = {};  ///< a layer each, over the second half of the steps; empty if not reached
    index_t largest_load_difference = 0;      ///< of two experts in any step, before capacity
    double routing_share = 0;                 ///< of training's seconds
    std::vector<layer_record> layers = {};
    bool is_complete = true;

    double final_bits() const { return evaluations.back().validation_bits; }
    double seconds() const { return evaluations.back().seconds; }
};

/// Told after every step: the steps done and the last step's bits per byte. False ends the run.
using watcher = std::function<bool(index_t steps, double bits)>;

/// Trains; A is what activations are stored in. Instantiated in train_float32.cpp and train_bfloat16.cpp, which compile
/// side by side.
template <class A>
run_record train(const options& asked, const run_settings& settings, const corpus& text, thread_team& team,
                 const watcher& watch);

extern template run_record train<float>(const options&, const run_settings&, const corpus&, thread_team&,
                                        const watcher&);
extern template run_record train<Eigen::bfloat16>(const options&, const run_settings&, const corpus&, thread_team&,
                                                  const watcher&);

}  // namespace study
