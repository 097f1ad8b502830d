#include "options.hpp"

#include "command_line.hpp"
#include "option_rules.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace study {
namespace {

constexpr const char* about =
    "Routes a table of scores [tokens, experts] by one or several routers of the switchyard library\n"
    "and writes what became of every token. With several routers it prints a comparison.";

constexpr const char* examples =
    "Written to DIR (to DIR/ROUTER with several routers):\n"
    "  experts.npy  int32 [T,k]    the experts chosen, kept or dropped\n"
    "  slots.npy    int32 [T,k]    the row within the expert, -1 where dropped\n"
    "  gates.npy    float32 [T,k]  the weight of the expert's output, 0 where dropped\n"
    "  offsets.npy  int64 [E+1]    where each expert's rows begin, over kept choices (--rowless: E-Z+1)\n"
    "  order.npy    int64 [kept]   token * k + choice of every row\n"
    "  summary.json                counts, loads, losses, total score, time, options as run\n"
    "\n"
    "Examples:\n"
    "  route_scores --scores S.npy --router switch --out results\n"
    "  route_scores --scores S.npy --router top_k --k 8 --softmax after --capacity-factor 1.5 --out results\n"
    "  route_scores --scores S.npy --router switch,top_k,base --repeat 9 --policy par --out results\n"
    "\n"
    "Exit status: 0 done; 2 bad input, with one line on stderr and nothing written.";

constexpr index_t no_limit = std::numeric_limits<index_t>::max();

/// The command line's grammar: every option writes what it was given into `asked`.
class grammar : public command_line {
  public:
    grammar(options& asked, bool needs_scores)
        : command_line("route_scores", about, examples, 38), asked_(asked), needs_scores_(needs_scores) {
        add_files();
        add_top_k();
        add_other_routers();
        add_capacity();
        add_losses_and_noise();
        add_more_losses();
        add_formats();
        add_execution();
    }

  private:
    void add_files() {
        group_ = "What to route";
        add_path("--scores", "S.npy",
                 "Scores [T,E]: NumPy format 1.0 to 3.0, float16, 32 or 64; -inf forbids an expert", asked_.scores)
            ->required(needs_scores_);
        add_names("--router", "R[,R...]", routers_by_name, asked_.routers,
                  "One or several of:\n"
                  "switch       the best expert, up to its capacity (Fedus et al. 2021)\n"
                  "top_k        the k best, by any of the parts below: most models\n"
                  "base         balanced assignment (Lewis et al. 2021)\n"
                  "greedy       base at inference: the best expert, no capacity\n"
                  "gshard       two experts, the second by a policy (Lepikhin et al. 2020)\n"
                  "sparse_mixer two experts drawn in turn (Liu et al. 2023; PhiMoE)\n"
                  "noisy_top_k  top_k of scores with learned noise (Shazeer et al. 2017)\n"
                  "sinkhorn     top_k with a bias that evens out probabilities (S-BASE)\n"
                  "quantile     top_k with a bias moved by quantiles of the scores\n"
                  "cosine       top_k of cosines of tokens and embeddings (xMoE); needs no scores\n"
                  "replay       experts from a file, weighed as by top_k\n"
                  "hash         experts from a table by token id, weighed as by top_k\n"
                  "random       k experts by chance, weighed as by top_k\n"
                  "round_robin  k experts in turn, weighed as by top_k")
            ->required();
        add_path("--mask", "M.npy", "[T] of 0 or 1: tokens with 0 are padding", asked_.mask);
        add_path("--choices", "IDS.npy", "Of replay: experts [T,k], int32 or int64; -1 is none", asked_.choices);
        add_path("--token-ids", "N.npy", "Of hash: what was tokenised, [T], integers", asked_.token_ids);
        add_path("--table", "V.npy", "Of hash: experts of each token id, [V,k], integers", asked_.table);
        add_path("--gradients", "C.npy", "[T,E]: also write the gradient of the scores, with C that of the gates",
                 asked_.gradients);
        add_path("--out", "DIR", "Folder for the results, made if need be; results of an earlier run are replaced",
                 asked_.out)
            ->required();
    }

    void add_top_k() {
        group_ = "Router top_k (and replay, hash, random, round_robin)";
        add_path("--preset", "NAME", "Options of a model by its model_type, such as deepseek_v3; those given win",
                 top_k_.preset);
        add_path("--config", "config.json", "Options of a model by its configuration; those given win", top_k_.config);
        add_number<index_t>("--k", "N", "Experts per token, 1..E (2)", top_k_.k, 1, no_limit);
        add_number<double>("--logit-multiplier", "X", "Scores are multiplied by X > 0 first (1)",
                           top_k_.logit_multiplier);
        add_path("--logit-bias", "L.npy", "[E], added next", top_k_.logit_bias);
        add_number<double>("--softcap", "X", "Then s becomes X tanh(s / X) (none)", top_k_.softcap);
        add_named("--score", scores_by_name, top_k_.score, "What weighs experts, a function of their scores (softmax)");
        add_named("--softmax", softmax_by_name, top_k_.softmax, "Over all experts, or over the k chosen (before)");
        add_path("--bias", "B.npy", "[E], added to what is compared, and to nothing else", top_k_.bias);
        add_named("--bias-on", bias_on_by_name, top_k_.bias_on,
                  "What is compared with a bias or groups (score; logit with --softmax after)");
        add_groups();
        add_weights();
        add_named("--balance-count", balance_count_by_name, asked_.balance_count,
                  "Choices that the balance loss counts (first)");
    }

    void add_groups() {
        add_number<index_t>("--groups", "G", "Groups of E / G experts, of which a token keeps the best", top_k_.groups,
                            1, no_limit);
        add_number<index_t>("--groups-kept", "N", "How many, 1..G", top_k_.groups_kept, 1, no_limit);
        add_named("--group-score", group_scores_by_name, top_k_.group_score, "Of what is compared in a group (max)");
        add_number<index_t>("--group-score-count", "N", "Of top_n_sum: how many are summed, 1..8",
                            top_k_.group_score_count, 1, no_limit);
        add_named("--group-mask", group_masks_by_name, top_k_.group_mask,
                  "What is compared outside the kept groups (minus_infinity)");
        add_flag("--one-each", "Instead: the best expert of every group, k = G", top_k_.one_each);
    }

    void add_weights() {
        add_flag("--renormalize", "As --normalize sum", top_k_.renormalize);
        add_named("--normalize", normalize_by_name, top_k_.normalize, "What a token's k gates are divided by (none)");
        add_number<double>("--norm-power", "P", "Of p_norm, > 0 (1)", top_k_.norm_power);
        add_number<double>("--normalize-epsilon", "X", "Of sum, >= 0 (0)", top_k_.normalize_epsilon);
        add_named("--epsilon-kind", epsilons_by_name, top_k_.epsilon, "sum + X, or max(sum, X) (add)");
        add_number<double>("--scale", "X", "Then gates are multiplied by X (1)", top_k_.scale);
        add_path("--expert-scale", "S.npy", "[E], and by the number of their expert", top_k_.expert_scale);
        add_number<index_t>("--rowless", "Z", "The last Z of the E experts give back their token, and take no rows (0)",
                            top_k_.rowless, 0, no_limit);
    }

    void add_other_routers() {
        group_ = "Routers gshard, sparse_mixer, noisy_top_k, sinkhorn, quantile, cosine";
        router_options& own = asked_.own;
        add_named("--second", seconds_by_name, own.second, "gshard: which second choices are kept (random)");
        add_number<double>("--second-threshold", "X", "gshard: of random and threshold, > 0 (0.5)",
                           own.second_threshold);
        add_named("--second-compared", second_weights_by_name, own.second_compared,
                  "gshard: what is compared with it (share)");
        add_named("--pair-sum", pair_sums_by_name, own.pair_sum,
                  "gshard: when gates are divided by their sum (before_drops)");
        add_number<double>("--mixer-epsilon", "X", "sparse_mixer: how near the best experts are drawn from (0.01)",
                           own.mixer_epsilon, 0);
        add_number<double>("--off-peak", "X", "sparse_mixer: factor of gates away from the best (1/3)", own.off_peak);
        add_path("--noise-scores", "N.npy", "noisy_top_k: [T,E], whose softplus is the noise's deviation",
                 own.noise_scores);
        add_number<double>("--least-deviation", "X", "noisy_top_k: added to it (0.01)", own.least_deviation, 0);
        add_number<double>("--importance-weight", "W", "noisy_top_k: of the importance loss (0)",
                           own.importance_weight);
        add_number<double>("--load-weight", "W", "noisy_top_k: of the load loss (0)", own.load_weight);
        add_number<double>("--temperature", "X", "sinkhorn (1), cosine (0.07): scores are divided by X > 0",
                           own.temperature);
        add_path("--tokens", "X.npy", "cosine: [T,D]", own.tokens);
        add_path("--embeddings", "W.npy", "cosine: of the experts, [E,D]", own.embeddings);
        add_number<double>("--tolerance", "X", "sinkhorn: of the residual, at which rounds end (0.01)", own.tolerance,
                           0);
        add_number<index_t>("--rounds", "N", "sinkhorn: at most (30); quantile: updates of the bias (1)", own.rounds, 1,
                            no_limit);
        add_number<double>("--ema", "X", "quantile: what stays of the bias in an update, in [0,1) (0)", own.ema, 0);
    }

    void add_capacity() {
        group_ = "Capacity (all routers but base and greedy)";
        add_number<double>("--capacity-factor", "F", "Rows per expert = F k T / E (switch 1.25; others have no limit)",
                           asked_.capacity_factor, 0);
        add_number<index_t>("--capacity", "N", "Rows per expert, as given; excludes --capacity-factor", asked_.capacity,
                            0, no_limit);
        add_named("--capacity-rounding", rounding_by_name, asked_.capacity_rounding,
                  "Of a capacity from a factor; round is half to even (floor)");
        add_number<index_t>("--capacity-minimum", "N", "A capacity from a factor is at least N (0)",
                            asked_.capacity_minimum, 0, no_limit);
        add_number<index_t>("--capacity-multiple", "N", "... then rounded up to a multiple of N (1)",
                            asked_.capacity_multiple, 1, no_limit);
        add_named("--drop-order", drop_order_by_name, asked_.drop_order,
                  "Who takes slots first: lower tokens, or higher top gates (position)");
    }

    void add_losses_and_noise() {
        group_ = "Losses and noise (all routers but base and greedy)";
        add_number<double>("--balance-weight", "W", "Of the load-balancing loss (0.01)", asked_.balance_weight);
        add_number<double>("--z-weight", "W", "Of the z-loss (0)", asked_.z_weight);
        add_named("--noise", noise_by_name, asked_.noise,
                  "logit_jitter: scores times U[1-X,1+X); sample (switch): choice by scores + X Gumbel (none)");
        add_number<double>("--noise-scale", "X", "logit_jitter: in [0,1) (0.01); sample: >= 0 (1)", asked_.noise_scale,
                           0);
        add_number<std::uint64_t>("--seed", "N", "Of the noise, 0 .. 2^64-1 (0)", asked_.seed);
    }

    void add_more_losses() {
        group_ = "More of losses";
        add_named("--balance-scope", scopes_by_name, asked_.balance_scope,
                  "The balance loss of the batch, or the mean of those of its sequences (batch)");
        add_path("--sequences", "O.npy", "[B+1], rising from 0 to T: sequence b is tokens O[b] .. O[b+1] - 1",
                 asked_.sequences);
        add_number<index_t>("--sequence-length", "S", "... or all sequences have S tokens, which divides T",
                            asked_.sequence_length, 1, no_limit);
        add_named("--balance-probability", probabilities_by_name, asked_.balance_probability,
                  "What it takes as probability: softmax, or --score by its row's sum, or as it is (softmax)");
        add_names("--losses", "L[,L...]", losses_by_name, asked_.losses,
                  "Values without weights in summary.json: " + names_of(losses_by_name, ", "));
    }

    void add_formats() {
        group_ = "Formats";
        add_names("--format", "F[,F...]", formats_by_name, asked_.formats,
                  "Also write FORMAT_ARRAY.npy: " + names_of(formats_by_name, ", "));
        add_number<index_t>("--block", "N", "Of vllm (16), deepgemm, megablocks (128): rows that experts are padded to",
                            asked_.block, 1, 1 << 24);
        add_number<index_t>("--ranks", "R", "Of deepep: ranks with E / R experts each", asked_.ranks, 1, no_limit);
    }

    void add_execution() {
        group_ = "How it runs";
        add_named("--solver", solvers_by_name, asked_.solver,
                  "Of router base: exact, or within 0.0005 std(scores) per token (hungarian)");
        add_named("--backend", backends_by_name, asked_.backend, "Eigen's CPU code or Thrust's CPU systems (eigen)");
        add_named("--policy", policies_by_name, asked_.policy, "One thread or several (seq)");
        add_number<int>("--threads", "N", "Of policy par (one per core)", asked_.threads, 1, 1024);
        add_number<index_t>("--repeat", "N", "Measured runs; milliseconds is their median (1)", asked_.repeat, 1,
                            no_limit);
    }

    options& asked_;
    bool needs_scores_;
    top_k_options& top_k_ = asked_.top_k;
};

}  // namespace

namespace {

/// Router cosine by itself makes its scores from tokens.
bool is_cosine_alone(int argc, const char* const* argv) {
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "--router=cosine" ||
            (word == "--router" && i + 1 < argc && argv[i + 1] == std::string_view("cosine"))) {
            return true;
        }
    }
    return false;
}

}  // namespace

std::optional<options> parse_options(int argc, const char* const* argv) {
    options asked;
    grammar line(asked, !is_cosine_alone(argc, argv));
    if (!line.parse(argc, argv)) {
        return std::nullopt;
    }
    require_possible(asked.top_k);
    const auto takes_model = [](router_kind router) { return is_recipe(router) || is_pair(router); };
    if (std::any_of(asked.routers.begin(), asked.routers.end(), takes_model)) {  // others refuse both
        if (!asked.top_k.preset.empty()) asked.top_k.model = preset_router("--preset", asked.top_k.preset);
        if (!asked.top_k.config.empty()) asked.top_k.model = configured_router("--config", asked.top_k.config);
    }
    require_used(asked, line);
    require_possible(asked);
    return asked;
}

}  // namespace study
