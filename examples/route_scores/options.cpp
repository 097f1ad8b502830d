#include "options.hpp"

#include "command_line.hpp"

#include <charconv>
#include <cmath>
#include <iostream>
#include <sstream>
#include <type_traits>

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
    "  offsets.npy  int64 [E+1]    where each expert's rows begin, over kept choices\n"
    "  order.npy    int64 [kept]   token * k + choice of every row\n"
    "  summary.json                counts, loads, losses, total score, time, options as run\n"
    "\n"
    "Examples:\n"
    "  route_scores --scores S.npy --router switch --out results\n"
    "  route_scores --scores S.npy --router top_k --k 8 --softmax after --capacity-factor 1.5 --out results\n"
    "  route_scores --scores S.npy --router switch,top_k,base --repeat 9 --policy par --out results\n"
    "\n"
    "Exit status: 0 done; 2 bad input, with one line on stderr and nothing written.";

/// Reads a whole text as one number; decimal, nothing before or after it.
template <class Number>
Number number_in(const char* option, const std::string& text) {
    Number number{};
    const char* const end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, number);
    const char* const kind = std::is_floating_point_v<Number> ? "number" : "whole number";
    sy::require(problem != std::errc::result_out_of_range, option, " '", text, "' is beyond what it can hold");
    const bool negative = std::is_unsigned_v<Number> && text.starts_with('-');
    sy::require(problem == std::errc{} && stop == end, option, " '", text, "' is not a ",
                negative ? "non-negative " : "", kind);
    return number;
}

double finite_number_in(const char* option, const std::string& text) {
    const auto number = number_in<double>(option, text);
    sy::require(std::isfinite(number), option, " '", text, "' must be finite");
    return number;
}

double factor_in(const char* option, const std::string& text) {
    const double number = finite_number_in(option, text);
    sy::require(number >= 0, option, " '", text, "' must not be negative");
    return number;
}

index_t count_in(const char* option, const std::string& text, index_t least, index_t most) {
    const auto number = number_in<index_t>(option, text);
    sy::require(number >= least, option, " '", text, "' must be at least ", least);
    sy::require(number <= most, option, " '", text, "' must be at most ", most);
    return number;
}
constexpr index_t no_limit = std::numeric_limits<index_t>::max();

/// The value that a name stands for.
template <class Value, std::size_t N>
Value value_in(const char* option, const named<Value> (&table)[N], const std::string& text) {
    std::string known;
    for (const auto& entry : table) {
        if (text == entry.name) {
            return entry.value;
        }
        known += (known.empty() ? "" : ", ") + std::string(entry.name);
    }
    sy::fail(option, " '", text, "' is unknown; it is one of ", known);
}

/// Names with commas between, each once.
template <class Value, std::size_t N>
std::vector<Value> values_in(const char* option, const named<Value> (&table)[N], const std::string& text) {
    std::vector<Value> values;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string name = text.substr(begin, end - begin);
        const Value value = value_in(option, table, name);
        sy::require(std::find(values.begin(), values.end(), value) == values.end(), option, " '", text, "' names ",
                    name, " twice");
        values.push_back(value);
        begin = end + 1;
    }
    return values;
}

/// The command line's grammar: every option writes what it was given into `asked`.
class grammar : public command_line {
  public:
    explicit grammar(options& asked) : command_line("route_scores", about, examples, 38), asked_(asked) {
        add_files();
        add_top_k();
        add_capacity();
        add_losses_and_noise();
        add_formats();
        add_execution();
    }

    /// What the option was given; null where it was not.
    const std::string* given(const char* name) const {
        const CLI::Option* const option = app_.get_option(name);
        return option->count() == 0 ? nullptr : &option->results().front();
    }

  private:
    template <class Value, std::size_t N, class Out>
    void add_named(const char* name, const named<Value> (&table)[N], Out& value, const char* what) {
        std::string names = "{";
        for (const auto& entry : table) {
            names += (names.size() > 1 ? "," : "") + std::string(entry.name);
        }
        add(name, (names + "}").c_str(), what,
            [&table, &value](const char* option, const std::string& text) { value = value_in(option, table, text); });
    }

    void add_files() {
        group_ = "What to route";
        add("--scores", "S.npy", "Scores [T,E]: NumPy format 1.0 to 3.0, float16, 32 or 64; -inf forbids an expert",
            [this](const char*, const std::string& text) { asked_.scores = text; })
            ->required();
        add("--router", "R[,R...]",
            "One or several of:\n"
            "switch       the best expert, up to its capacity (Fedus et al. 2021)\n"
            "top_k        the k best, by any of the parts below: most models\n"
            "base         balanced assignment (Lewis et al. 2021)\n"
            "greedy       base at inference: the best expert, no capacity\n"
            "replay       experts from a file, weighed as by top_k\n"
            "hash         experts from a table by token id, weighed as by top_k\n"
            "random       k experts by chance, weighed as by top_k\n"
            "round_robin  k experts in turn, weighed as by top_k",
            [this](const char* name, const std::string& text) {
                asked_.routers = values_in(name, routers_by_name, text);
            })
            ->required();
        add_text("--mask", "M.npy", "[T] of 0 or 1: tokens with 0 are padding", asked_.mask);
        add_text("--choices", "IDS.npy", "Of replay: experts [T,k], int32 or int64; -1 is none", asked_.choices);
        add_text("--token-ids", "N.npy", "Of hash: what was tokenised, [T], integers", asked_.token_ids);
        add_text("--table", "V.npy", "Of hash: experts of each token id, [V,k], integers", asked_.table);
        add_text("--gradients", "C.npy", "[T,E]: also write the gradient of the scores, with C that of the gates",
                 asked_.gradients);
        add("--out", "DIR", "Folder for the results, made if need be; results of an earlier run are replaced",
            [this](const char* name, const std::string& text) {
                sy::require(!text.empty(), name, " '' is no folder");
                asked_.out = text;
            })
            ->required();
    }

    void add_top_k() {
        group_ = "Router top_k (and replay, hash, random, round_robin)";
        add_text("--preset", "NAME", "Options of a model by its model_type, such as deepseek_v3; those given win",
                 top_k_.preset);
        add_text("--config", "config.json", "Options of a model by its configuration; those given win", top_k_.config);
        add("--k", "N", "Experts a token goes to, 1..E (2)",
            [this](const char* name, const std::string& text) { top_k_.k = count_in(name, text, 1, no_limit); });
        add_number("--logit-multiplier", "X", "Scores are multiplied by X > 0 first (1)", top_k_.logit_multiplier);
        add_text("--logit-bias", "L.npy", "[E], added next", top_k_.logit_bias);
        add_number("--softcap", "X", "Then s becomes X tanh(s / X) (none)", top_k_.softcap);
        add_named("--score", scores_by_name, top_k_.score, "What weighs experts, a function of their scores (softmax)");
        add_named("--softmax", softmax_by_name, top_k_.softmax, "Over all experts, or over the k chosen (before)");
        add_text("--bias", "B.npy", "[E], added to what is compared, and to nothing else", top_k_.bias);
        add_named("--bias-on", bias_on_by_name, top_k_.bias_on,
                  "What is compared with a bias or groups (score; logit with --softmax after)");
        add_groups();
        add_weights();
        add_named("--balance-count", balance_count_by_name, asked_.balance_count,
                  "Choices that the balance loss counts (first)");
    }

    void add_groups() {
        add("--groups", "G", "Groups of E / G experts, of which a token keeps the best",
            [this](const char* name, const std::string& text) { top_k_.groups = count_in(name, text, 1, no_limit); });
        add("--groups-kept", "N", "How many, 1..G", [this](const char* name, const std::string& text) {
            top_k_.groups_kept = count_in(name, text, 1, no_limit);
        });
        add_named("--group-score", group_scores_by_name, top_k_.group_score, "Of what is compared in a group (max)");
        add("--group-score-count", "N", "Of top_n_sum: how many are summed, 1..8",
            [this](const char* name, const std::string& text) {
                top_k_.group_score_count = count_in(name, text, 1, no_limit);
            });
        add_named("--group-mask", group_masks_by_name, top_k_.group_mask,
                  "What is compared outside the kept groups (minus_infinity)");
    }

    void add_weights() {
        app_.add_flag("--renormalize", top_k_.renormalize, "As --normalize sum")
            ->disable_flag_override()
            ->group(group_);
        add_named("--normalize", normalize_by_name, top_k_.normalize, "What a token's k gates are divided by (none)");
        add_number("--norm-power", "P", "Of p_norm, > 0 (1)", top_k_.norm_power);
        add_number("--normalize-epsilon", "X", "Of sum, >= 0 (0)", top_k_.normalize_epsilon);
        add_named("--epsilon-kind", epsilons_by_name, top_k_.epsilon, "sum + X, or max(sum, X) (add)");
        add_number("--scale", "X", "Then gates are multiplied by X (1)", top_k_.scale);
        add_text("--expert-scale", "S.npy", "[E], and by the number of their expert", top_k_.expert_scale);
    }

    void add_text(const char* name, const char* type, const char* what, std::string& out) {
        add(name, type, what, [&out](const char* option, const std::string& text) {
            sy::require(!text.empty(), option, " '' names nothing");
            out = text;
        });
    }
    void add_number(const char* name, const char* type, const char* what, std::optional<double>& out) {
        add(name, type, what,
            [&out](const char* option, const std::string& text) { out = finite_number_in(option, text); });
    }

    void add_capacity() {
        group_ = "Capacity (switch, top_k)";
        add("--capacity-factor", "F", "Rows an expert = F k T / E (switch 1.25; top_k has no limit)",
            [this](const char* name, const std::string& text) { asked_.capacity_factor = factor_in(name, text); });
        add("--capacity", "N", "Rows an expert, as given; excludes --capacity-factor",
            [this](const char* name, const std::string& text) { asked_.capacity = count_in(name, text, 0, no_limit); });
        add_named("--capacity-rounding", rounding_by_name, asked_.capacity_rounding,
                  "Of a capacity from a factor; round is half to even (floor)");
        add("--capacity-minimum", "N", "A capacity from a factor is at least N (0)",
            [this](const char* name, const std::string& text) {
                asked_.capacity_minimum = count_in(name, text, 0, no_limit);
            });
        add("--capacity-multiple", "N", "... then rounded up to a multiple of N (1)",
            [this](const char* name, const std::string& text) {
                asked_.capacity_multiple = count_in(name, text, 1, no_limit);
            });
        add_named("--drop-order", drop_order_by_name, asked_.drop_order,
                  "Who takes slots first: lower tokens, or higher top gates (position)");
    }

    void add_losses_and_noise() {
        group_ = "Losses and noise (switch, top_k)";
        add("--balance-weight", "W", "Of the load-balancing loss (0.01)",
            [this](const char* name, const std::string& text) {
                asked_.balance_weight = finite_number_in(name, text);
            });
        add("--z-weight", "W", "Of the z-loss (0)",
            [this](const char* name, const std::string& text) { asked_.z_weight = finite_number_in(name, text); });
        add_named("--noise", noise_by_name, asked_.noise,
                  "logit_jitter: scores times U[1-X,1+X); sample (switch): choice by scores + X Gumbel (none)");
        add("--noise-scale", "X", "logit_jitter: in [0,1) (0.01); sample: >= 0 (1)",
            [this](const char* name, const std::string& text) { asked_.noise_scale = factor_in(name, text); });
        add("--seed", "N", "Of the noise, 0 .. 2^64-1 (0)",
            [this](const char* name, const std::string& text) { asked_.seed = number_in<std::uint64_t>(name, text); });
    }

    void add_formats() {
        group_ = "Formats";
        add("--format", "F[,F...]",
            "Also write FORMAT_ARRAY.npy: rows, grouped_mm, vllm, deepgemm, megatron, te, deepep, megablocks, sonic, "
            "scatter, llama_cpp, flashinfer, one_hot",
            [this](const char* name, const std::string& text) {
                asked_.formats = values_in(name, formats_by_name, text);
            });
        add("--block", "N", "Of vllm (16), deepgemm, megablocks (128): rows that experts are padded to",
            [this](const char* name, const std::string& text) { asked_.block = count_in(name, text, 1, 1 << 24); });
        add("--ranks", "R", "Of deepep: ranks with E / R experts each",
            [this](const char* name, const std::string& text) { asked_.ranks = count_in(name, text, 1, no_limit); });
    }

    void add_execution() {
        group_ = "How it runs";
        add_named("--solver", solvers_by_name, asked_.solver,
                  "Of router base: exact, or within 0.0005 std(scores) a token (hungarian)");
        add_named("--backend", backends_by_name, asked_.backend, "Eigen's CPU code or Thrust's CPU systems (eigen)");
        add_named("--policy", policies_by_name, asked_.policy, "One thread or several (seq)");
        add("--threads", "N", "Of policy par (one a core)", [this](const char* name, const std::string& text) {
            asked_.threads = static_cast<int>(count_in(name, text, 1, 1024));
        });
        add("--repeat", "N", "Measured runs; milliseconds is their median (1)",
            [this](const char* name, const std::string& text) { asked_.repeat = count_in(name, text, 1, no_limit); });
    }

    options& asked_;
    top_k_options& top_k_ = asked_.top_k;
};

/// Whether something uses an option, and what would.
struct use {
    const char* option;
    bool used;
    const char* needs;
};

void require_used(const options& asked, const grammar& line) {
    const bool top_k = std::any_of(asked.routers.begin(), asked.routers.end(), is_recipe);
    const bool chooses_itself = asked.chooses(router_kind::top_k);
    const bool draws = asked.chooses(router_kind::random);
    const bool switched = asked.chooses(router_kind::switch_router);
    const bool softmax = top_k || switched;
    const bool factor = softmax && (asked.capacity_factor || (switched && !asked.capacity));
    const bool noise = softmax && asked.noise != noise_kind::none;
    const use uses[] = {
        {"--choices", asked.chooses(router_kind::replay), "router replay"},
        {"--token-ids", asked.chooses(router_kind::hash), "router hash"},
        {"--table", asked.chooses(router_kind::hash), "router hash"},
        {"--k", chooses_itself || draws || asked.chooses(router_kind::round_robin), "router top_k"},
        {"--bias", chooses_itself, "router top_k"},
        {"--groups", chooses_itself, "router top_k"},
        {"--bias-on", chooses_itself, "router top_k"},
        {"--groups-kept", chooses_itself, "router top_k"},
        {"--group-score", chooses_itself, "router top_k"},
        {"--group-score-count", chooses_itself, "router top_k"},
        {"--group-mask", chooses_itself, "router top_k"},
        {"--gradients", top_k || switched || asked.chooses(router_kind::base), "a router that trains"},
        {"--capacity-factor", softmax, "router switch or top_k"},
        {"--capacity", softmax, "router switch or top_k"},
        {"--capacity-rounding", factor, "router switch or top_k with a capacity from a factor"},
        {"--capacity-minimum", factor, "router switch or top_k with a capacity from a factor"},
        {"--capacity-multiple", factor, "router switch or top_k with a capacity from a factor"},
        {"--drop-order", softmax, "router switch or top_k"},
        {"--balance-weight", softmax, "router switch or top_k"},
        {"--z-weight", softmax, "router switch or top_k"},
        {"--noise", asked.noise == noise_kind::sample ? switched : softmax,
         asked.noise == noise_kind::sample ? "router switch" : "router switch or top_k"},
        {"--noise-scale", noise, "--noise logit_jitter or sample"},
        {"--seed", noise || draws, "--noise logit_jitter or sample"},
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
        const bool is_flag = std::string_view(u.option) == "--renormalize";
        sy::require(text == nullptr || u.used, u.option, is_flag ? "" : " ",
                    is_flag || text == nullptr ? "" : text->c_str(), " is used by nothing chosen: it needs ", u.needs);
    };
    for (const char* const option :
         {"--preset", "--config", "--logit-multiplier", "--logit-bias", "--softcap", "--score", "--softmax",
          "--renormalize", "--normalize", "--norm-power", "--normalize-epsilon", "--epsilon-kind", "--scale",
          "--expert-scale", "--balance-count"}) {
        require_use({option, top_k, "router top_k"});
    }
    for (const use& u : uses) require_use(u);
    if (!top_k) return;
    const sy::recipe_router<> router = recipe_of(asked);
    const bool takes_sum =
        !weighs_after(asked) || asked.top_k.renormalize || asked.top_k.normalize == normalize_kind::sum;
    const bool sums = takes_sum && (router.normalize == sy::gate_sum::add || router.normalize == sy::gate_sum::clamp);
    const use top_k_uses[] = {
        {"--bias-on", !asked.top_k.bias.empty() || router.groups.choose(), "--bias or groups"},
        {"--groups-kept", router.groups.count > 1 || asked.top_k.groups.has_value(), "--groups"},
        {"--group-score", router.groups.count > 1 || asked.top_k.groups.has_value(), "--groups"},
        {"--group-mask", router.groups.count > 1 || asked.top_k.groups.has_value(), "--groups"},
        {"--group-score-count", asked.top_k.group_score == group_score_kind::top_n_sum, "--group-score top_n_sum"},
        {"--norm-power", router.normalize == sy::gate_sum::norm, "--normalize p_norm"},
        {"--normalize-epsilon", sums, "--normalize sum"},
        {"--epsilon-kind", sums, "--normalize sum"},
    };
    for (const use& u : top_k_uses) require_use(u);
}

/// Whether no model's settings stand below those given.
bool is_plain(const top_k_options& given) { return given.preset.empty() && given.config.empty(); }

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
    sy::require(!given.groups || *given.groups == 1 || given.groups_kept || !is_plain(given), "--groups ",
                given.groups.value_or(0), " needs --groups-kept");
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
}

/// The weight of a token's choices is a softmax over them, whose sum is 1 before what it is divided by.
void weigh_after(sy::recipe_router<>& router, bool normalizes, double epsilon, epsilon_kind kind) {
    router.key = sy::key_source::score;
    router.normalize = sy::gate_sum::add;
    router.epsilon = 0;
    if (normalizes) router.scale /= kind == epsilon_kind::add ? 1 + epsilon : std::max(1.0, epsilon);
}

/// A preset's groups keep what is not said anew.
void take_groups(const top_k_options& given, sy::expert_groups& groups) {
    if (given.groups) {
        groups.count = *given.groups;
        if (*given.groups == 1) groups.kept = 1;
        if (is_plain(given)) groups.summed = 1;
    }
    if (given.groups_kept) groups.kept = *given.groups_kept;
    if (given.group_score) {
        groups.summed = *given.group_score == group_score_kind::max        ? 1
                        : *given.group_score == group_score_kind::top2_sum ? 2
                                                                           : given.group_score_count.value_or(0);
    }
    if (given.group_mask) groups.masked = *given.group_mask;
}

/// Whether weights are a softmax over the chosen, by --softmax or the model's own way.
bool weighs_after(const top_k_options& given, sy::score_function score) {
    if (given.softmax) return *given.softmax == sy::softmax_order::after;
    return given.model.is_after && score == sy::score_function::softmax;
}

/// What weights are divided by, and whether they are a softmax over the chosen.
void take_gates(const top_k_options& given, sy::recipe_router<>& router) {
    const bool is_after = weighs_after(given, router.score);
    const bool is_given = given.normalize || given.renormalize;
    const normalize_kind kind = given.normalize.value_or(normalize_kind::sum);
    if (given.model.is_after) router.normalize = sy::gate_sum::none;  // its sum is that of the softmax
    const bool clamps =
        given.epsilon.value_or(router.normalize == sy::gate_sum::clamp ? epsilon_kind::clamp : epsilon_kind::add) ==
        epsilon_kind::clamp;
    if (is_given) {
        router.normalize = kind == normalize_kind::none     ? sy::gate_sum::none
                           : kind == normalize_kind::p_norm ? sy::gate_sum::norm
                                                            : sy::gate_sum::add;
        if (kind != normalize_kind::sum) router.epsilon = 0;
    }
    if (clamps && router.normalize == sy::gate_sum::add) router.normalize = sy::gate_sum::clamp;
    if (!clamps && router.normalize == sy::gate_sum::clamp) router.normalize = sy::gate_sum::add;
    if (given.normalize_epsilon) router.epsilon = *given.normalize_epsilon;
    if (given.norm_power) router.norm_power = *given.norm_power;
    if (!is_after) return;
    sy::require(router.score == sy::score_function::softmax,
                "--softmax after needs --score softmax, and the model's is ", name_of(scores_by_name, router.score));
    sy::require(router.normalize != sy::gate_sum::norm, "--softmax after and --normalize p_norm exclude each other");
    const bool sums = router.normalize == sy::gate_sum::add || router.normalize == sy::gate_sum::clamp;
    weigh_after(router, sums, router.epsilon, clamps ? epsilon_kind::clamp : epsilon_kind::add);
}

}  // namespace

sy::recipe_router<> recipe_of(const options& asked, router_kind which, std::optional<index_t> given_k) {
    const top_k_options& given = asked.top_k;
    sy::recipe_router<> router = given.model.router;
    const auto take = [](const auto& from, auto& to) {
        if (from) to = *from;
    };
    take(given.k, router.k);
    if (given_k) router.k = *given_k;
    take(given.logit_multiplier, router.logit_multiplier);
    take(given.softcap, router.softcap);
    take(given.score, router.score);
    take(given.bias_on, router.key);
    take_groups(given, router.groups);
    take(given.scale, router.scale);
    take_gates(given, router);

    if (is_given_choices(which)) router.groups = {};
    router.capacity = router.inference_capacity = capacity_rule_of(asked, router_kind::top_k);
    router.order = asked.drop_order;
    router.logit_jitter = noise_of(asked, router_kind::top_k).scale;
    router.balance = asked.balance_count == count_kind::first ? sy::balance_count::first : sy::balance_count::all;
    router.balance_weight = asked.balance_weight;
    if (asked.balance_count == count_kind::all_undivided) router.balance_weight *= static_cast<double>(router.k);
    router.z_weight = asked.z_weight;
    return router;
}

bool weighs_after(const options& asked) {
    return weighs_after(asked.top_k, asked.top_k.score.value_or(asked.top_k.model.router.score));
}

bool has_constant_gates(const sy::recipe_router<>& router) {
    return router.k == 1 && router.normalize != sy::gate_sum::none && router.epsilon == 0;
}

sy::capacity_rule capacity_rule_of(const options& asked, router_kind router) {
    sy::capacity_rule rule{.factor = asked.capacity_factor,
                           .number = asked.capacity,
                           .rounding = asked.capacity_rounding,
                           .minimum = asked.capacity_minimum,
                           .multiple = asked.capacity_multiple};
    if (router == router_kind::switch_router && !rule.factor && !rule.number) {
        rule.factor = 1.25;
    }
    return rule;
}

noise_setting noise_of(const options& asked, router_kind router) {
    const bool adds_it =
        router == router_kind::switch_router || (is_recipe(router) && asked.noise == noise_kind::logit_jitter);
    if (!adds_it || asked.noise == noise_kind::none) {
        return {};
    }
    return {asked.noise, static_cast<float>(noise_scale_of(asked))};
}

double noise_scale_of(const options& asked) {
    return asked.noise_scale.value_or(asked.noise == noise_kind::sample ? 1.0 : 0.01);
}

std::optional<options> parse_options(int argc, const char* const* argv) {
    options asked;
    grammar line(asked);
    if (!line.parse(argc, argv)) {
        return std::nullopt;
    }
    require_possible(asked.top_k);
    if (std::any_of(asked.routers.begin(), asked.routers.end(), is_recipe)) {  // others refuse both
        if (!asked.top_k.preset.empty()) asked.top_k.model = preset_router("--preset", asked.top_k.preset);
        if (!asked.top_k.config.empty()) asked.top_k.model = configured_router("--config", asked.top_k.config);
    }
    require_used(asked, line);
    require_possible(asked);
    sy::require(!asked.writes(format_kind::deepep) || asked.ranks, "--format deepep needs --ranks");
    const auto require_file = [&](router_kind router, const char* option, const std::string& path) {
        sy::require(!asked.chooses(router) || !path.empty(), "--router ", name_of(routers_by_name, router), " needs ",
                    option);
    };
    require_file(router_kind::replay, "--choices", asked.choices);
    require_file(router_kind::hash, "--token-ids", asked.token_ids);
    require_file(router_kind::hash, "--table", asked.table);
    return asked;
}

}  // namespace study
