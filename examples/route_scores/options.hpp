// What the command line asks for, checked as far as it can be without the scores.
//
// An option that no chosen router uses is an error, not a surprise in a table of results; `parse_options` knows which
// router uses what, and `capacity_rule_of` and `noise_of` say what a router gets.
#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

namespace study {

namespace sy = switchyard;
using sy::index_t;

enum class router_kind { switch_router, top_k, base, greedy };
enum class noise_kind { none, logit_jitter, sample };
enum class solver_kind { hungarian, auction };
enum class backend_kind { eigen, thrust };
enum class policy_kind { seq, par };

/// A value and what it is called on the command line and in summary.json.
template <class Value>
struct named {
    const char* name;
    Value value;
};

inline constexpr named<router_kind> routers_by_name[] = {{"switch", router_kind::switch_router},
                                                         {"top_k", router_kind::top_k},
                                                         {"base", router_kind::base},
                                                         {"greedy", router_kind::greedy}};
inline constexpr named<sy::softmax_order> softmax_by_name[] = {{"before", sy::softmax_order::before},
                                                               {"after", sy::softmax_order::after}};
inline constexpr named<sy::balance_count> balance_count_by_name[] = {{"first", sy::balance_count::first},
                                                                     {"all", sy::balance_count::all}};
inline constexpr named<sy::capacity_rounding> rounding_by_name[] = {{"floor", sy::capacity_rounding::floor},
                                                                    {"round", sy::capacity_rounding::round},
                                                                    {"ceil", sy::capacity_rounding::ceil}};
inline constexpr named<sy::drop_order> drop_order_by_name[] = {{"position", sy::drop_order::position},
                                                               {"gate", sy::drop_order::gate}};
inline constexpr named<noise_kind> noise_by_name[] = {
    {"none", noise_kind::none}, {"logit_jitter", noise_kind::logit_jitter}, {"sample", noise_kind::sample}};
inline constexpr named<solver_kind> solvers_by_name[] = {{"hungarian", solver_kind::hungarian},
                                                         {"auction", solver_kind::auction}};
inline constexpr named<backend_kind> backends_by_name[] = {{"eigen", backend_kind::eigen},
                                                           {"thrust", backend_kind::thrust}};
inline constexpr named<policy_kind> policies_by_name[] = {{"seq", policy_kind::seq}, {"par", policy_kind::par}};

/// The name of a value: `name_of(routers_by_name, router_kind::base)` is "base".
template <class Value, std::size_t N>
const char* name_of(const named<Value> (&table)[N], Value value) {
    return std::find_if(std::begin(table), std::end(table), [value](const auto& entry) { return entry.value == value; })
        ->name;
}

struct options {
    std::string scores;
    std::string out;
    std::vector<router_kind> routers;  ///< in the order given, each once

    index_t k = 2;
    sy::softmax_order softmax = sy::softmax_order::before;
    bool renormalize = false;
    sy::balance_count balance_count = sy::balance_count::first;

    std::optional<double> capacity_factor;  ///< as given; see capacity_rule_of
    std::optional<index_t> capacity;
    sy::capacity_rounding capacity_rounding = sy::capacity_rounding::floor;
    index_t capacity_minimum = 0;
    index_t capacity_multiple = 1;
    sy::drop_order drop_order = sy::drop_order::position;

    double balance_weight = 0.01;
    double z_weight = 0;
    noise_kind noise = noise_kind::none;
    std::optional<double> noise_scale;  ///< as given; see noise_of
    std::uint64_t seed = 0;

    solver_kind solver = solver_kind::hungarian;
    backend_kind backend = backend_kind::eigen;
    policy_kind policy = policy_kind::seq;
    int threads = 0;  ///< of policy par; 0: one a core
    index_t repeat = 1;

    bool chooses(router_kind router) const {
        return std::find(routers.begin(), routers.end(), router) != routers.end();
    }
};

/// The noise a router adds: top_k has no sampling.
struct noise_setting {
    noise_kind kind = noise_kind::none;
    float scale = 0;
};

/// What the options say about capacity for switch or top_k: switch has a factor of 1.25 unless told otherwise.
sy::capacity_rule capacity_rule_of(const options& asked, router_kind router);

noise_setting noise_of(const options& asked, router_kind router);

/// The scale as given, or the usual one of the kind of noise.
double noise_scale_of(const options& asked);

/// Reads the command line. Nothing is returned where it asked for help or the version, which are then printed; anything
/// wrong throws switchyard::error with a sentence.
std::optional<options> parse_options(int argc, const char* const* argv);

}  // namespace study
