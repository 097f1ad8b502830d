// What the command line asks for, checked as far as it can be without the scores.
//
// An option that no chosen router uses is an error, not a surprise in a table of results; `parse_options` knows which
// router uses what, and `capacity_rule_of` and `noise_of` say what a router gets.
#pragma once

#include "presets.hpp"
#include "values.hpp"

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace study {

enum class router_kind {
    switch_router,
    top_k,
    base,
    greedy,
    gshard,
    sparse_mixer,
    noisy_top_k,
    sinkhorn,
    quantile,
    cosine,
    replay,
    hash,
    random,
    round_robin
};
enum class noise_kind { none, logit_jitter, sample };
enum class group_score_kind { max, top2_sum, top_n_sum };
enum class normalize_kind { none, sum, p_norm };
enum class epsilon_kind { add, clamp };
/// What the balance loss counts; all_undivided: all k choices, not divided by k.
enum class count_kind { first, all, all_undivided };
enum class scope_kind { batch, sequence };
enum class loss_kind { balance, device_balance, communication_balance, z, entropy, mutual_information, importance };
enum class format_kind {
    rows,
    grouped_mm,
    vllm,
    deepgemm,
    megatron,
    te,
    deepep,
    megablocks,
    sonic,
    scatter,
    llama_cpp,
    flashinfer,
    one_hot
};
enum class solver_kind { hungarian, auction };
enum class backend_kind { eigen, thrust };
enum class policy_kind { seq, par };

inline constexpr named<router_kind> routers_by_name[] = {{"switch", router_kind::switch_router},
                                                         {"top_k", router_kind::top_k},
                                                         {"base", router_kind::base},
                                                         {"greedy", router_kind::greedy},
                                                         {"gshard", router_kind::gshard},
                                                         {"sparse_mixer", router_kind::sparse_mixer},
                                                         {"noisy_top_k", router_kind::noisy_top_k},
                                                         {"sinkhorn", router_kind::sinkhorn},
                                                         {"quantile", router_kind::quantile},
                                                         {"cosine", router_kind::cosine},
                                                         {"replay", router_kind::replay},
                                                         {"hash", router_kind::hash},
                                                         {"random", router_kind::random},
                                                         {"round_robin", router_kind::round_robin}};
inline constexpr named<sy::softmax_order> softmax_by_name[] = {{"before", sy::softmax_order::before},
                                                               {"after", sy::softmax_order::after}};
inline constexpr named<sy::score_function> scores_by_name[] = {{"softmax", sy::score_function::softmax},
                                                               {"sigmoid", sy::score_function::sigmoid},
                                                               {"sqrt_softplus", sy::score_function::sqrt_softplus}};
inline constexpr named<sy::key_source> bias_on_by_name[] = {{"score", sy::key_source::value},
                                                            {"logit", sy::key_source::score}};
inline constexpr named<group_score_kind> group_scores_by_name[] = {{"max", group_score_kind::max},
                                                                   {"top2_sum", group_score_kind::top2_sum},
                                                                   {"top_n_sum", group_score_kind::top_n_sum}};
inline constexpr named<sy::group_mask> group_masks_by_name[] = {{"minus_infinity", sy::group_mask::forbidden},
                                                                {"zero", sy::group_mask::zero}};
inline constexpr named<sy::second_choice> seconds_by_name[] = {{"all", sy::second_choice::all},
                                                               {"none", sy::second_choice::none},
                                                               {"random", sy::second_choice::random},
                                                               {"threshold", sy::second_choice::threshold},
                                                               {"sampling", sy::second_choice::sampling}};
inline constexpr named<sy::second_weight> second_weights_by_name[] = {{"share", sy::second_weight::share},
                                                                      {"probability", sy::second_weight::probability}};
inline constexpr named<sy::pair_sum> pair_sums_by_name[] = {{"none", sy::pair_sum::none},
                                                            {"before_drops", sy::pair_sum::before_drops},
                                                            {"after_drops", sy::pair_sum::after_drops},
                                                            {"first_before_drops", sy::pair_sum::first_before_drops}};
inline constexpr named<normalize_kind> normalize_by_name[] = {
    {"none", normalize_kind::none}, {"sum", normalize_kind::sum}, {"p_norm", normalize_kind::p_norm}};
inline constexpr named<epsilon_kind> epsilons_by_name[] = {{"add", epsilon_kind::add}, {"clamp", epsilon_kind::clamp}};
inline constexpr named<count_kind> balance_count_by_name[] = {
    {"first", count_kind::first}, {"all", count_kind::all}, {"all_undivided", count_kind::all_undivided}};
inline constexpr named<scope_kind> scopes_by_name[] = {{"batch", scope_kind::batch},
                                                       {"sequence", scope_kind::sequence}};
inline constexpr named<sy::balance_probability> probabilities_by_name[] = {
    {"softmax", sy::balance_probability::softmax},
    {"normalized", sy::balance_probability::normalized},
    {"raw", sy::balance_probability::raw}};
inline constexpr named<loss_kind> losses_by_name[] = {{"balance", loss_kind::balance},
                                                      {"device_balance", loss_kind::device_balance},
                                                      {"communication_balance", loss_kind::communication_balance},
                                                      {"z", loss_kind::z},
                                                      {"entropy", loss_kind::entropy},
                                                      {"mutual_information", loss_kind::mutual_information},
                                                      {"importance", loss_kind::importance}};
inline constexpr named<sy::capacity_rounding> rounding_by_name[] = {{"floor", sy::capacity_rounding::floor},
                                                                    {"round", sy::capacity_rounding::round},
                                                                    {"ceil", sy::capacity_rounding::ceil}};
inline constexpr named<sy::drop_order> drop_order_by_name[] = {{"position", sy::drop_order::position},
                                                               {"gate", sy::drop_order::gate}};
inline constexpr named<noise_kind> noise_by_name[] = {
    {"none", noise_kind::none}, {"logit_jitter", noise_kind::logit_jitter}, {"sample", noise_kind::sample}};
inline constexpr named<format_kind> formats_by_name[] = {
    {"rows", format_kind::rows},           {"grouped_mm", format_kind::grouped_mm},
    {"vllm", format_kind::vllm},           {"deepgemm", format_kind::deepgemm},
    {"megatron", format_kind::megatron},   {"te", format_kind::te},
    {"deepep", format_kind::deepep},       {"megablocks", format_kind::megablocks},
    {"sonic", format_kind::sonic},         {"scatter", format_kind::scatter},
    {"llama_cpp", format_kind::llama_cpp}, {"flashinfer", format_kind::flashinfer},
    {"one_hot", format_kind::one_hot}};
inline constexpr named<solver_kind> solvers_by_name[] = {{"hungarian", solver_kind::hungarian},
                                                         {"auction", solver_kind::auction}};
inline constexpr named<backend_kind> backends_by_name[] = {{"eigen", backend_kind::eigen},
                                                           {"thrust", backend_kind::thrust}};
inline constexpr named<policy_kind> policies_by_name[] = {{"seq", policy_kind::seq}, {"par", policy_kind::par}};

/// Of router top_k, as given; files by their paths. `recipe_of` says what they come to.
struct top_k_options {
    std::string preset, config;
    preset_settings model{.router = {.k = 2}};  ///< what either says, read once; top_k's own without
    std::optional<index_t> k;
    std::optional<double> logit_multiplier, softcap;
    std::string logit_bias;
    std::optional<sy::score_function> score;
    std::optional<sy::softmax_order> softmax;
    std::string bias;
    std::optional<sy::key_source> bias_on;
    std::optional<index_t> groups, groups_kept, group_score_count;
    std::optional<group_score_kind> group_score;
    bool one_each = false;
    std::optional<sy::group_mask> group_mask;
    bool renormalize = false;
    std::optional<normalize_kind> normalize;
    std::optional<double> norm_power, normalize_epsilon;
    std::optional<epsilon_kind> epsilon;
    std::optional<double> scale;
    std::string expert_scale;
    std::optional<index_t> rowless;

    /// Whether no model's settings stand below those given.
    bool is_plain() const { return preset.empty() && config.empty(); }
};

/// Of the routers gshard, sparse_mixer, noisy_top_k, sinkhorn, quantile and cosine, as given.
struct router_options {
    std::optional<sy::second_choice> second;
    std::optional<double> second_threshold;
    std::optional<sy::second_weight> second_compared;
    std::optional<sy::pair_sum> pair_sum;
    std::optional<double> mixer_epsilon, off_peak;
    std::string noise_scores;                       ///< path
    double least_deviation = 0.01;                  ///< of noisy_top_k
    double importance_weight = 0, load_weight = 0;  ///< the same
    std::optional<double> temperature;              ///< see temperature_of
    double tolerance = 0.01, ema = 0;               ///< of sinkhorn, and of quantile
    std::string tokens, embeddings;                 ///< paths, of cosine
    std::optional<index_t> rounds;
};

struct options {
    std::string scores;            ///< path, empty: those of cosine, which runs alone
    std::string gradients;         ///< path, empty: none are asked for
    std::string mask;              ///< path, empty: every token counts
    std::string choices;           ///< path, of replay
    std::string token_ids, table;  ///< paths, of hash
    std::string out;
    std::vector<router_kind> routers;  ///< in the order given, each once

    top_k_options top_k;
    router_options own;
    count_kind balance_count = count_kind::first;

    std::optional<double> capacity_factor;  ///< as given; see capacity_rule_of
    std::optional<index_t> capacity;
    sy::capacity_rounding capacity_rounding = sy::capacity_rounding::floor;
    index_t capacity_minimum = 0;
    index_t capacity_multiple = 1;
    sy::drop_order drop_order = sy::drop_order::position;

    double balance_weight = 0.01;
    double z_weight = 0;
    scope_kind balance_scope = scope_kind::batch;
    sy::balance_probability balance_probability = sy::balance_probability::softmax;
    std::string sequences;                   ///< path, of scope sequence
    std::optional<index_t> sequence_length;  ///< the other way to say it
    std::vector<loss_kind> losses;           ///< whose values are asked for, each once
    noise_kind noise = noise_kind::none;
    std::optional<double> noise_scale;  ///< as given; see noise_of
    std::uint64_t seed = 0;

    std::vector<format_kind> formats;  ///< each once
    std::optional<index_t> block, ranks;

    solver_kind solver = solver_kind::hungarian;
    backend_kind backend = backend_kind::eigen;
    policy_kind policy = policy_kind::seq;
    int threads = 0;  ///< of policy par; 0: one per core
    index_t repeat = 1;

    bool writes(format_kind format) const { return std::find(formats.begin(), formats.end(), format) != formats.end(); }
    bool reports(loss_kind loss) const { return std::find(losses.begin(), losses.end(), loss) != losses.end(); }
    /// Whether the balance loss is another than the one that routers compute while they route.
    bool has_own_balance() const {
        return balance_scope != scope_kind::batch || balance_probability != sy::balance_probability::softmax;
    }
    bool chooses(router_kind router) const {
        return std::find(routers.begin(), routers.end(), router) != routers.end();
    }
};

/// The noise a router adds: top_k has no sampling.
struct noise_setting {
    noise_kind kind = noise_kind::none;
    float scale = 0;
};

/// Whether a router weighs choices that it is given, by the parts of top_k.
inline bool is_given_choices(router_kind router) {
    return router == router_kind::replay || router == router_kind::hash || router == router_kind::random ||
           router == router_kind::round_robin;
}
/// Whether a router is top_k with a bias that it finds by the scores.
inline bool finds_bias(router_kind router) {
    return router == router_kind::sinkhorn || router == router_kind::quantile;
}
/// Whether a router is the library's recipe.
inline bool is_recipe(router_kind router) {
    return router == router_kind::top_k || router == router_kind::noisy_top_k || router == router_kind::cosine ||
           finds_bias(router) || is_given_choices(router);
}
/// Whether it chooses by its keys: the options that only choose are of these.
inline bool chooses_by_keys(router_kind router) { return is_recipe(router) && !is_given_choices(router); }
/// Whether a router has two choices of its own making.
inline bool is_pair(router_kind router) { return router == router_kind::gshard || router == router_kind::sparse_mixer; }

/// The library's router that top_k's options come to for a router that is_recipe, without what lies in files.
/// `given_k` is the k of choices that are given.
sy::recipe_router<> recipe_of(const options& asked, router_kind router = router_kind::top_k,
                              std::optional<index_t> given_k = {});

/// A model's experts behind the last column that is chosen from, which every token has (Inkling).
index_t shared_experts_of(const options& asked);

/// The library's routers of two choices that the options come to.
sy::gshard_router gshard_of(const options& asked);
sy::sparse_mixer_router sparse_mixer_of(const options& asked);

/// The rounds of sinkhorn (30) or quantile (1).
index_t rounds_of(const options& asked, router_kind router);

/// That of sinkhorn (1) or cosine (0.07).
double temperature_of(const options& asked, router_kind router);

/// Whether weights are a softmax over the chosen scores, by --softmax, a preset's own way or noisy_top_k's.
bool weighs_after(const options& asked, router_kind router = router_kind::top_k);

/// One choice divided by its own sum: gates are constant. The library refuses to train that router, which would learn
/// nothing; what it does with scores is clear all the same.
bool has_constant_gates(const sy::recipe_router<>& router);

/// Whether a router has a loss of those that are asked for by name: those of devices are of groups.
bool has_loss(const options& asked, router_kind router, loss_kind loss);

/// What the options say about capacity for all but base and greedy: switch has a factor of 1.25 unless told otherwise.
sy::capacity_rule capacity_rule_of(const options& asked, router_kind router);

noise_setting noise_of(const options& asked, router_kind router);

/// The scale as given, or the usual one of the kind of noise.
double noise_scale_of(const options& asked);

/// Reads the command line. Nothing is returned where it asked for help or the version, which are then printed; anything
/// wrong throws switchyard::error with an error message.
std::optional<options> parse_options(int argc, const char* const* argv);

}  // namespace study
