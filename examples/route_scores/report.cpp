#include "report.hpp"

#include "npy.hpp"
#include "table.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <cmath>
#include <span>
#include <utility>

namespace study {
namespace {

using json = nlohmann::ordered_json;

template <class Value>
json or_null(const std::optional<Value>& value) {
    return value ? json(*value) : json(nullptr);
}

json finite(const char* name, double value) {
    sy::require(std::isfinite(value), name, " = ", value, " of these scores and weights is beyond double");
    return value;
}
json finite(const char* name, const std::optional<double>& value) {
    return value ? finite(name, *value) : json(nullptr);
}

json path_or_null(const std::string& path) { return path.empty() ? json(nullptr) : json(path); }

/// What top_k's options, a preset's among them, come to.
void add_top_k(json& run, const options& asked, router_kind which) {
    const sy::recipe_router<> router = recipe_of(asked, which);
    const bool chooses = chooses_by_keys(which);
    const bool is_after = weighs_after(asked, which);
    const bool is_divided = asked.top_k.renormalize || asked.top_k.normalize == normalize_kind::sum;
    const bool clamps = router.normalize == sy::gate_sum::clamp;
    run["preset"] = path_or_null(asked.top_k.preset);
    run["config"] = path_or_null(asked.top_k.config);
    if (chooses || which == router_kind::random || which == router_kind::round_robin) run["k"] = router.k;
    run["logit_multiplier"] = router.logit_multiplier;
    run["logit_bias"] = path_or_null(asked.top_k.logit_bias);
    run["softcap"] = router.softcap == 0 ? json(nullptr) : json(router.softcap);
    run["score"] = name_of(scores_by_name, router.score);
    run["softmax"] = is_after ? "after" : "before";
    if (chooses) {
        run["bias"] = path_or_null(asked.top_k.bias);
        run["bias_on"] = name_of(bias_on_by_name, router.key);
        run["groups"] = router.groups.count;
        run["groups_kept"] = router.groups.kept;
        run["group_score_count"] = router.groups.summed;
        run["one_each"] = router.groups.one_each;
        run["group_mask"] = name_of(group_masks_by_name, router.groups.masked);
    }
    const bool has_none = is_after ? !is_divided : router.normalize == sy::gate_sum::none;
    run["normalize"] = has_none ? "none" : router.normalize == sy::gate_sum::norm ? "p_norm" : "sum";
    run["norm_power"] = router.norm_power;
    run["normalize_epsilon"] = router.epsilon;
    run["epsilon_kind"] = clamps ? "clamp" : "add";
    run["renormalize"] = asked.top_k.renormalize;
    run["scale"] = router.scale;
    run["expert_scale"] = path_or_null(asked.top_k.expert_scale);
    run["rowless"] = router.rowless.count();
    run["balance_count"] = router.groups.one_each && asked.balance_count == count_kind::first
                               ? "all"
                               : name_of(balance_count_by_name, asked.balance_count);
}

/// What the routers beside top_k have of their own.
void add_own(json& run, const options& asked, router_kind router) {
    if (is_pair(router)) {
        run["preset"] = path_or_null(asked.top_k.preset);
        run["config"] = path_or_null(asked.top_k.config);
        run["balance_count"] = name_of(balance_count_by_name, asked.balance_count);
    }
    if (router == router_kind::gshard) {
        const sy::gshard_router r = gshard_of(asked);
        run["second"] = name_of(seconds_by_name, r.second);
        run["second_threshold"] = r.second_threshold;
        run["second_compared"] = name_of(second_weights_by_name, r.compared);
        run["pair_sum"] = name_of(pair_sums_by_name, r.normalize);
        run["normalize_epsilon"] = r.epsilon;
        run["epsilon_kind"] = r.epsilon_kind == sy::gate_sum::add ? "add" : "clamp";
    }
    if (router == router_kind::sparse_mixer) {
        const sy::sparse_mixer_router r = sparse_mixer_of(asked);
        run["mixer_epsilon"] = r.epsilon;
        run["off_peak"] = r.off_peak;
    }
    if (router == router_kind::noisy_top_k) {
        run["noise_scores"] = asked.own.noise_scores;
        run["least_deviation"] = asked.own.least_deviation;
        run["importance_weight"] = asked.own.importance_weight;
        run["load_weight"] = asked.own.load_weight;
    }
    if (router == router_kind::sinkhorn) {
        run["temperature"] = temperature_of(asked, router);
        run["tolerance"] = asked.own.tolerance;
    }
    if (router == router_kind::cosine) {
        run["tokens"] = asked.own.tokens;
        run["embeddings"] = asked.own.embeddings;
        run["temperature"] = temperature_of(asked, router);
    }
    if (finds_bias(router)) run["rounds"] = rounds_of(asked, router);
    if (router == router_kind::quantile) run["ema"] = asked.own.ema;
}

/// The capacity that a router ran with: a model's own, unless told otherwise.
sy::capacity_rule capacity_as_run(const options& asked, router_kind router) {
    if (router == router_kind::gshard) return gshard_of(asked).capacity;
    if (router == router_kind::sparse_mixer) return sparse_mixer_of(asked).capacity;
    return capacity_rule_of(asked, router);
}
sy::drop_order order_as_run(const options& asked, router_kind router) {
    return router == router_kind::gshard ? gshard_of(asked).order : asked.drop_order;
}

/// The settings that the router ran with, defaults included; only those it has.
json options_as_run(const options& asked, router_kind router) {
    json run = {{"scores", path_or_null(asked.scores)}};
    run["mask"] = path_or_null(asked.mask);
    run["gradients"] = router == router_kind::greedy ? json(nullptr) : path_or_null(asked.gradients);
    const bool top_k = is_recipe(router);
    if (top_k) add_top_k(run, asked, router);
    add_own(run, asked, router);
    if (router == router_kind::replay) run["choices"] = asked.choices;
    if (router == router_kind::hash) {
        run["token_ids"] = asked.token_ids;
        run["table"] = asked.table;
    }
    if (top_k || is_pair(router) || router == router_kind::switch_router) {
        const sy::capacity_rule capacity = capacity_as_run(asked, router);
        const noise_setting noise = noise_of(asked, router);
        run["capacity_factor"] = or_null(capacity.factor);
        run["capacity"] = or_null(capacity.number);
        run["capacity_rounding"] = name_of(rounding_by_name, capacity.rounding);
        run["capacity_minimum"] = capacity.minimum;
        run["capacity_multiple"] = capacity.multiple;
        run["drop_order"] = name_of(drop_order_by_name, order_as_run(asked, router));
        run["balance_weight"] = asked.balance_weight;
        run["z_weight"] = asked.z_weight;
        run["noise"] = name_of(noise_by_name, noise.kind);
        run["noise_scale"] = noise.kind == noise_kind::none ? json(nullptr) : json(noise_scale_of(asked));
        run["seed"] = asked.seed;
    }
    if (router == router_kind::base) {
        run["solver"] = name_of(solvers_by_name, asked.solver);
    }
    run["balance_scope"] = name_of(scopes_by_name, asked.balance_scope);
    run["balance_probability"] = name_of(probabilities_by_name, asked.balance_probability);
    run["sequences"] = path_or_null(asked.sequences);
    run["sequence_length"] = or_null(asked.sequence_length);
    run["losses"] = json::array();
    for (const loss_kind loss : asked.losses) {
        if (has_loss(asked, router, loss)) run["losses"].push_back(name_of(losses_by_name, loss));
    }
    run["format"] = json::array();
    for (const format_kind format : asked.formats) run["format"].push_back(name_of(formats_by_name, format));
    run["block"] = or_null(asked.block);
    run["ranks"] = or_null(asked.ranks);
    run["backend"] = name_of(backends_by_name, asked.backend);
    run["policy"] = name_of(policies_by_name, asked.policy);
    run["threads"] = threads_of(asked);
    run["repeat"] = asked.repeat;
    return run;
}

template <class Number>
void write_array(output_folder& out, const std::filesystem::path& name, const std::vector<Number>& numbers,
                 std::span<const index_t> shape) {
    out.write(name, npy_header(npy_type<Number>(), shape), std::as_bytes(std::span(numbers)));
}

}  // namespace

std::string summary_of(const options& asked, const routing& made) {
    json summary = {{"router", name_of(routers_by_name, made.router)},
                    {"tokens", made.tokens},
                    {"experts", made.experts},
                    {"k", made.choices},
                    {"capacity", or_null(made.capacity)},
                    {"kept", made.kept()},
                    {"dropped", made.dropped()},
                    {"load_before", made.load_before},
                    {"load_after", made.load_after},
                    {"load_balancing_loss", finite("load_balancing_loss", made.load_balancing_loss)},
                    {"z_loss", finite("z_loss", made.z_loss)},
                    {"total_score", finite("total_score", made.total_score)},
                    {"milliseconds", made.milliseconds},
                    {"options", options_as_run(asked, made.router)}};
    for (const auto& [loss, value] : made.losses) {
        const char* const name = name_of(losses_by_name, loss);
        summary["losses"][name] = finite(name, value);
    }
    // Choices that ask for no row, where there are experts without.
    if (made.columns > made.experts) summary["rowless"] = made.rowless;
    if (made.d_temperature) summary["d_temperature"] = finite("d_temperature", made.d_temperature);
    if (made.importance_loss) summary["importance_loss"] = finite("importance_loss", made.importance_loss);
    if (made.load_loss) summary["load_loss"] = finite("load_loss", made.load_loss);
    if (made.bias_rounds) summary["bias_rounds"] = *made.bias_rounds;
    if (made.bias_residual) summary["bias_residual"] = finite("bias_residual", made.bias_residual);
    // A path may hold bytes that are no UTF-8.
    return summary.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

void write_results(output_folder& out, const std::filesystem::path& subfolder, const options& asked,
                   const routing& made) {
    const std::array table{made.tokens, made.choices};
    const std::array offsets{made.experts + 1};
    const std::array order{made.kept()};
    write_array(out, subfolder / "experts.npy", made.chosen, table);
    write_array(out, subfolder / "slots.npy", made.slots, table);
    write_array(out, subfolder / "gates.npy", made.gates, table);
    write_array(out, subfolder / "offsets.npy", made.offsets, offsets);
    write_array(out, subfolder / "order.npy", made.order, order);
    const auto write_gradient = [&](const char* name, const std::vector<double>& gradient, index_t rows,
                                    index_t columns) {
        const std::array scores{rows, columns};
        if (made.is_double) {
            write_array(out, subfolder / name, gradient, scores);
        } else {
            write_array(out, subfolder / name, std::vector<float>(gradient.begin(), gradient.end()), scores);
        }
    };
    if (!made.d_scores.empty() || (!asked.gradients.empty() && made.router != router_kind::greedy)) {
        write_gradient("d_scores.npy", made.d_scores, made.tokens, made.columns);
        if (made.router == router_kind::noisy_top_k) {
            write_gradient("d_noise_scores.npy", made.d_noise_scores, made.tokens, made.columns);
        }
        if (made.router == router_kind::cosine) {
            write_gradient("d_tokens.npy", made.d_tokens, made.tokens, made.width);
            write_gradient("d_embeddings.npy", made.d_embeddings, made.columns, made.width);
        }
    }
    for (const format_array& array : made.formats) {
        out.write(subfolder / (array.name + ".npy"), npy_header(array.type, array.shape), array.bytes);
    }
    out.write(subfolder / "summary.json", summary_of(asked, made), {});
}

std::string comparison_of(const std::vector<routing>& all) {
    table_lines lines = {{"router", "total score", "kept", "load variation", "balance loss", "z-loss", "milliseconds"}};
    for (const routing& made : all) {
        lines.push_back({name_of(routers_by_name, made.router), formatted("%.9g", made.total_score),
                         std::to_string(made.kept()) + " of " + std::to_string(made.asked),
                         formatted("%.4g", made.load_variation), formatted("%.5g", made.load_balancing_loss, "-"),
                         formatted("%.5g", made.z_loss, "-"), formatted("%.4g", made.milliseconds)});
    }
    return plain_table(std::move(lines));
}

}  // namespace study
