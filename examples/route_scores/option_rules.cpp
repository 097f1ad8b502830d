#include "option_rules.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

namespace study {
namespace {

/// Whether something uses an option, and what would.
struct use {
    const char* option;
    bool used;
    const char* needs;
};

}  // namespace

void require_used(const options& asked, const command_line& line) {
    const bool top_k = std::any_of(asked.routers.begin(), asked.routers.end(), is_recipe);
    const bool chooses_itself = std::any_of(asked.routers.begin(), asked.routers.end(), chooses_by_keys);
    const bool takes_bias = asked.chooses(router_kind::top_k) || asked.chooses(router_kind::cosine) ||
                            asked.chooses(router_kind::noisy_top_k) || asked.chooses(router_kind::quantile);
    const bool gshard = asked.chooses(router_kind::gshard);
    const bool mixer = asked.chooses(router_kind::sparse_mixer);
    const bool noisy = asked.chooses(router_kind::noisy_top_k);
    const bool sinkhorn = asked.chooses(router_kind::sinkhorn);
    const bool quantile = asked.chooses(router_kind::quantile);
    const bool cosine = asked.chooses(router_kind::cosine);
    const bool draws = asked.chooses(router_kind::random);
    const bool switched = asked.chooses(router_kind::switch_router);
    const bool softmax = top_k || switched || gshard || mixer;
    const bool factor = softmax && (asked.capacity_factor || (switched && !asked.capacity));
    const bool noise = softmax && asked.noise != noise_kind::none;
    const use uses[] = {
        {"--choices", asked.chooses(router_kind::replay), "router replay"},
        {"--token-ids", asked.chooses(router_kind::hash), "router hash"},
        {"--table", asked.chooses(router_kind::hash), "router hash"},
        {"--k", chooses_itself || draws || asked.chooses(router_kind::round_robin), "router top_k"},
        {"--bias", takes_bias, "router top_k"},
        {"--groups", chooses_itself, "router top_k"},
        {"--bias-on", chooses_itself, "router top_k"},
        {"--groups-kept", chooses_itself, "router top_k"},
        {"--group-score", chooses_itself, "router top_k"},
        {"--group-score-count", chooses_itself, "router top_k"},
        {"--group-mask", chooses_itself, "router top_k"},
        {"--one-each", chooses_itself, "router top_k"},
        {"--second", gshard, "router gshard"},
        {"--second-threshold", gshard, "router gshard"},
        {"--second-compared", gshard, "router gshard"},
        {"--pair-sum", gshard, "router gshard"},
        {"--mixer-epsilon", mixer, "router sparse_mixer"},
        {"--off-peak", mixer, "router sparse_mixer"},
        {"--noise-scores", noisy, "router noisy_top_k"},
        {"--least-deviation", noisy, "router noisy_top_k"},
        {"--importance-weight", noisy, "router noisy_top_k"},
        {"--load-weight", noisy, "router noisy_top_k"},
        {"--temperature", sinkhorn || cosine, "router sinkhorn or cosine"},
        {"--tokens", cosine, "router cosine"},
        {"--embeddings", cosine, "router cosine"},
        {"--tolerance", sinkhorn, "router sinkhorn"},
        {"--rounds", sinkhorn || quantile, "router sinkhorn or quantile"},
        {"--ema", quantile, "router quantile"},
        {"--gradients", softmax || asked.chooses(router_kind::base), "a router that trains"},
        {"--capacity-factor", softmax, "a router other than base and greedy"},
        {"--capacity", softmax, "a router other than base and greedy"},
        {"--capacity-rounding", factor, "a router with a capacity from a factor"},
        {"--capacity-minimum", factor, "a router with a capacity from a factor"},
        {"--capacity-multiple", factor, "a router with a capacity from a factor"},
        {"--drop-order", softmax, "a router other than base and greedy"},
        {"--balance-weight", softmax, "a router other than base and greedy"},
        {"--z-weight", softmax, "a router other than base and greedy"},
        {"--noise", asked.noise == noise_kind::sample ? switched : softmax,
         asked.noise == noise_kind::sample ? "router switch" : "a router other than base and greedy"},
        {"--noise-scale", noise, "--noise logit_jitter or sample"},
        {"--seed", noise || draws || gshard || mixer || noisy,
         "--noise logit_jitter or sample, or router gshard, sparse_mixer, noisy_top_k or random"},
        {"--block",
         asked.writes(format_kind::vllm) || asked.writes(format_kind::deepgemm) ||
             asked.writes(format_kind::megablocks),
         "--format vllm, deepgemm or megablocks"},
        {"--ranks", asked.writes(format_kind::deepep), "--format deepep"},
        {"--solver", asked.chooses(router_kind::base), "router base"},
        {"--threads", asked.policy == policy_kind::par, "--policy par"},
    };
    const auto require_use = [&](const use& u) {
        const std::string* const text = line.given(u.option);
        const bool is_flag =
            std::string_view(u.option) == "--renormalize" || std::string_view(u.option) == "--one-each";
        sy::require(text == nullptr || u.used, u.option, is_flag ? "" : " ",
                    is_flag || text == nullptr ? "" : text->c_str(), " is used by nothing chosen: it needs ", u.needs);
    };
    for (const char* const option :
         {"--logit-multiplier", "--logit-bias", "--softcap", "--score", "--softmax", "--renormalize", "--normalize",
          "--norm-power", "--scale", "--expert-scale", "--rowless"}) {
        require_use({option, top_k, "router top_k"});
    }
    const bool balances = softmax || asked.reports(loss_kind::balance);
    for (const char* const option : {"--balance-scope", "--balance-probability"}) {
        require_use({option, balances, "a router with a balance loss, or --losses balance"});
    }
    for (const char* const option : {"--sequences", "--sequence-length"}) {
        require_use({option, balances && asked.balance_scope == scope_kind::sequence, "--balance-scope sequence"});
    }
    for (const char* const option : {"--preset", "--config", "--balance-count"}) {
        require_use({option, top_k || gshard || mixer, "router top_k, gshard or sparse_mixer"});
    }
    for (const char* const option : {"--normalize-epsilon", "--epsilon-kind"}) {
        require_use({option, top_k || gshard, "router top_k or gshard"});
    }
    for (const use& u : uses) require_use(u);
    for (const loss_kind loss : {loss_kind::device_balance, loss_kind::communication_balance}) {
        const bool has_devices = std::any_of(asked.routers.begin(), asked.routers.end(),
                                             [&](router_kind router) { return has_loss(asked, router, loss); });
        sy::require(!asked.reports(loss) || has_devices, "--losses ", name_of(losses_by_name, loss),
                    " needs router top_k with groups, which are its devices");
    }
    sy::require(
        !gshard || asked.balance_count == count_kind::first ||
            !(asked.has_own_balance() || asked.reports(loss_kind::balance)),
        "--balance-count ", name_of(balance_count_by_name, asked.balance_count),
        " of router gshard is of the second choices that its policy keeps, which a plan does not tell from "
        "those over capacity: --losses balance, --balance-scope and --balance-probability are of first choices");
    if (!top_k) return;
    const sy::recipe_router<> router = recipe_of(asked);
    const bool finds = asked.chooses(router_kind::sinkhorn) || asked.chooses(router_kind::quantile);
    for (const router_kind other : asked.routers) {
        sy::require(!is_recipe(other) || other == router_kind::top_k || router.rowless.shared == 0,
                    "the model's shared experts are of router top_k, and not of ", name_of(routers_by_name, other));
    }
    sy::require(!finds || (router.logit_multiplier == 1 && router.softcap == 0),
                "--router sinkhorn and quantile find a bias for the file's scores, and the model changes scores first");
    const bool takes_sum =
        !weighs_after(asked) || asked.top_k.renormalize || asked.top_k.normalize == normalize_kind::sum;
    const bool sums = takes_sum && (router.normalize == sy::gate_sum::add || router.normalize == sy::gate_sum::clamp);
    const use top_k_uses[] = {
        {"--bias-on",
         (!asked.top_k.bias.empty() && (asked.chooses(router_kind::top_k) || noisy || cosine)) ||
             router.groups.choose(),
         "--bias or groups"},
        {"--groups-kept", router.groups.count > 1 || asked.top_k.groups.has_value(), "--groups"},
        {"--group-score", router.groups.count > 1 || asked.top_k.groups.has_value(), "--groups"},
        {"--group-mask", router.groups.count > 1 || asked.top_k.groups.has_value(), "--groups"},
        {"--group-score-count", asked.top_k.group_score == group_score_kind::top_n_sum, "--group-score top_n_sum"},
        {"--norm-power", router.normalize == sy::gate_sum::norm, "--normalize p_norm"},
        {"--normalize-epsilon", sums || gshard, "--normalize sum"},
        {"--epsilon-kind", sums || gshard, "--normalize sum"},
    };
    for (const use& u : top_k_uses) require_use(u);
}

/// Options of top_k that contradict each other.
void require_possible(const top_k_options& given) {
    const auto require_apart = [](bool both, const char* one, const char* other) {
        sy::require(!both, one, " and ", other, " exclude each other");
    };
    require_apart(!given.preset.empty() && !given.config.empty(), "--preset", "--config");
    const bool after = given.softmax == sy::softmax_order::after;
    require_apart(after && given.score.value_or(sy::score_function::softmax) != sy::score_function::softmax,
                  "--softmax after", "a --score other than softmax");
    require_apart(after && given.normalize == normalize_kind::p_norm, "--softmax after", "--normalize p_norm");
    require_apart(after && given.bias_on == sy::key_source::value, "--softmax after", "--bias-on score");
    require_apart(given.renormalize && given.normalize.value_or(normalize_kind::sum) != normalize_kind::sum,
                  "--renormalize", "a --normalize other than sum");
    require_apart(given.group_score_count && given.group_score != group_score_kind::top_n_sum, "--group-score-count",
                  "a --group-score other than top_n_sum");
    sy::require(given.group_score != group_score_kind::top_n_sum || given.group_score_count,
                "--group-score top_n_sum needs --group-score-count");
    sy::require(!given.groups || *given.groups == 1 || given.groups_kept || given.one_each || !given.is_plain(),
                "--groups ", given.groups.value_or(0), " needs --groups-kept");
    const auto require_float = [](const char* option, const std::optional<double>& x) {
        const double least = std::numeric_limits<float>::min();
        const double size = x ? std::abs(*x) : 1;
        sy::require(size == 0 || (size >= least && size <= std::numeric_limits<float>::max()), option, " ",
                    x.value_or(0), " is beyond float32");
    };
    require_float("--logit-multiplier", given.logit_multiplier);
    require_float("--softcap", given.softcap);
    require_float("--scale", given.scale);
}

void require_possible(const options& asked) {
    sy::require(!(asked.capacity && asked.capacity_factor), "--capacity ", asked.capacity.value_or(0),
                " and --capacity-factor ", asked.capacity_factor.value_or(0), " exclude each other");
    if (asked.noise_scale && asked.noise == noise_kind::logit_jitter) {
        sy::require(static_cast<float>(*asked.noise_scale) < 1, "--noise-scale ", *asked.noise_scale,
                    " of logit_jitter must lie in [0, 1)");
    }
    sy::require(!asked.noise_scale || std::isfinite(static_cast<float>(*asked.noise_scale)), "--noise-scale ",
                asked.noise_scale.value_or(0), " is beyond float32");
    sy::require(!asked.writes(format_kind::deepep) || asked.ranks, "--format deepep needs --ranks");
    sy::require(asked.sequences.empty() || !asked.sequence_length, "--sequences and --sequence-length ",
                asked.sequence_length.value_or(0), " exclude each other");
    sy::require(asked.balance_scope == scope_kind::batch || !asked.sequences.empty() || asked.sequence_length,
                "--balance-scope sequence needs --sequences or --sequence-length");
    const auto require_file = [&](router_kind router, const char* option, const std::string& path) {
        sy::require(!asked.chooses(router) || !path.empty(), "--router ", name_of(routers_by_name, router), " needs ",
                    option);
    };
    require_file(router_kind::replay, "--choices", asked.choices);
    require_file(router_kind::hash, "--token-ids", asked.token_ids);
    require_file(router_kind::hash, "--table", asked.table);
    require_file(router_kind::noisy_top_k, "--noise-scores", asked.own.noise_scores);
    require_file(router_kind::cosine, "--tokens", asked.own.tokens);
    require_file(router_kind::cosine, "--embeddings", asked.own.embeddings);
    const bool changes = asked.top_k.logit_multiplier || asked.top_k.softcap || !asked.top_k.logit_bias.empty() ||
                         asked.noise == noise_kind::logit_jitter;
    const bool finds = asked.chooses(router_kind::sinkhorn) || asked.chooses(router_kind::quantile);
    sy::require(!changes || !finds,
                "--router sinkhorn and quantile find a bias for the file's scores: --logit-multiplier, --logit-bias, "
                "--softcap and --noise change them");
    sy::require(!asked.chooses(router_kind::quantile) || asked.mask.empty(),
                "--router quantile and --mask exclude each other: its shares are of all tokens");
    const preset_settings& model = asked.top_k.model;
    const bool is_named = !asked.top_k.is_plain();
    const auto require_router = [&](bool is_its_own, router_kind own) {
        const bool runs_others = std::any_of(asked.routers.begin(), asked.routers.end(), is_recipe);
        sy::require(!is_its_own || (asked.chooses(own) && !runs_others), "the model's router is --router ",
                    name_of(routers_by_name, own), ", and not top_k");
    };
    require_router(model.gshard.has_value(), router_kind::gshard);
    require_router(model.sparse_mixer.has_value(), router_kind::sparse_mixer);
    for (const auto& [own, has] : {std::pair(router_kind::gshard, model.gshard.has_value()),
                                   std::pair(router_kind::sparse_mixer, model.sparse_mixer.has_value())}) {
        const bool is_for_others = std::any_of(asked.routers.begin(), asked.routers.end(), is_recipe);
        sy::require(!is_named || has || is_for_others || !asked.chooses(own), "the model's router is not --router ",
                    name_of(routers_by_name, own));
    }
}

}  // namespace study
