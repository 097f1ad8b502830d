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

std::vector<router_kind> routers_in(const char* option, const std::string& text) {
    std::vector<router_kind> routers;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string name = text.substr(begin, end - begin);
        const router_kind router = value_in(option, routers_by_name, name);
        sy::require(std::find(routers.begin(), routers.end(), router) == routers.end(), option, " '", text, "' names ",
                    name, " twice");
        routers.push_back(router);
        begin = end + 1;
    }
    return routers;
}

/// The command line's grammar: every option writes what it was given into `asked`.
class grammar : public command_line {
  public:
    explicit grammar(options& asked) : command_line("route_scores", about, examples, 38), asked_(asked) {
        add_files();
        add_top_k();
        add_capacity();
        add_losses_and_noise();
        add_execution();
    }

    /// What the option was given; null where it was not.
    const std::string* given(const char* name) const {
        const CLI::Option* const option = app_.get_option(name);
        return option->count() == 0 ? nullptr : &option->results().front();
    }

  private:
    template <class Value, std::size_t N>
    void add_named(const char* name, const named<Value> (&table)[N], Value& value, const char* what) {
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
        add("--router", "R[,R...]", "One or several of switch, top_k, base, greedy",
            [this](const char* name, const std::string& text) { asked_.routers = routers_in(name, text); })
            ->required();
        add("--out", "DIR", "Folder for the results, made if need be; results of an earlier run are replaced",
            [this](const char* name, const std::string& text) {
                sy::require(!text.empty(), name, " '' is no folder");
                asked_.out = text;
            })
            ->required();
    }

    void add_top_k() {
        group_ = "Router top_k";
        add("--k", "N", "Experts a token goes to, 1..E (2)",
            [this](const char* name, const std::string& text) { asked_.k = count_in(name, text, 1, no_limit); });
        add_named("--softmax", softmax_by_name, asked_.softmax, "Over all experts, or over the k chosen (before)");
        app_.add_flag("--renormalize", asked_.renormalize, "Divide gates by their sum over the k choices")
            ->disable_flag_override()
            ->group(group_);
        add_named("--balance-count", balance_count_by_name, asked_.balance_count,
                  "Choices that the balance loss counts (first)");
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
};

/// Whether something uses an option, and what would.
struct use {
    const char* option;
    bool used;
    const char* needs;
};

void require_used(const options& asked, const grammar& line) {
    const bool top_k = asked.chooses(router_kind::top_k);
    const bool switched = asked.chooses(router_kind::switch_router);
    const bool softmax = top_k || switched;
    const bool factor = softmax && (asked.capacity_factor || (switched && !asked.capacity));
    const bool noise = softmax && asked.noise != noise_kind::none;
    const use uses[] = {
        {"--k", top_k, "router top_k"},
        {"--softmax", top_k, "router top_k"},
        {"--renormalize", top_k, "router top_k"},
        {"--balance-count", top_k, "router top_k"},
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
        {"--seed", noise, "--noise logit_jitter or sample"},
        {"--solver", asked.chooses(router_kind::base), "router base"},
        {"--threads", asked.policy == policy_kind::par, "--policy par"},
    };
    for (const use& u : uses) {
        const std::string* const text = line.given(u.option);
        const bool is_flag = std::string_view(u.option) == "--renormalize";
        sy::require(text == nullptr || u.used, u.option, is_flag ? "" : " ",
                    is_flag || text == nullptr ? "" : text->c_str(), " is used by nothing chosen: it needs ", u.needs);
    }
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

}  // namespace

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
    const bool adds_it = router == router_kind::switch_router ||
                         (router == router_kind::top_k && asked.noise == noise_kind::logit_jitter);
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
    require_used(asked, line);
    require_possible(asked);
    return asked;
}

}  // namespace study
