#include "presets.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string_view>

namespace study {
namespace {

namespace models = sy::models;
using json = nlohmann::json;
using sy::score_function;

/// A configuration, and how sentences call it; without one every field keeps what it is.
class config_file {
  public:
    config_file() = default;
    config_file(std::string name, json fields) : name_(std::move(name)), fields_(std::move(fields)) {}

    /// The field into `value`, by the first of its names that the file has and that is not null.
    template <class Value>
    void read(std::initializer_list<const char*> names, Value& value) const {
        for (const char* const field : names) {
            const auto found = fields_.find(field);
            if (found == fields_.end() || found->is_null()) continue;
            take(field, *found, value);
            return;
        }
    }
    std::string text(const char* field) const {
        std::string value;
        read({field}, value);
        return value;
    }
    /// Whether there is a file.
    bool is_given() const { return !name_.empty(); }
    bool is_null(const char* field) const {
        const auto found = fields_.find(field);
        return found != fields_.end() && found->is_null();
    }
    /// A part of it, itself where there is none.
    config_file part(const char* field) const {
        const auto found = fields_.find(field);
        return found != fields_.end() && found->is_object() ? config_file(name_, *found) : *this;
    }

  private:
    template <class... Parts>
    void require(bool rule, const char* field, const json& value, const Parts&... parts) const {
        sy::require(rule, name_, ": ", field, " = ", value.dump(), " ", parts...);
    }
    void take(const char* field, const json& value, index_t& out) const {
        if (value.is_array()) {  // a number for each layer
            require(
                !value.empty() && std::all_of(value.begin(), value.end(), [&](const json& v) { return v == value[0]; }),
                field, value, "differs from layer to layer");
            return take(field, value[0], out);
        }
        const double number = value.is_number() ? value.get<double>() : 0.5;
        require(number == std::floor(number) && std::abs(number) < 1e15, field, value, "is no whole number");
        out = static_cast<index_t>(number);
    }
    void take(const char* field, const json& value, double& out) const {
        require(value.is_number(), field, value, "is no number");
        out = value.get<double>();
    }
    void take(const char* field, const json& value, bool& out) const {
        require(value.is_boolean(), field, value, "is neither true nor false");
        out = value.get<bool>();
    }
    void take(const char* field, const json& value, std::string& out) const {
        require(value.is_string(), field, value, "is no text");
        out = value.get<std::string>();
    }
    void take(const char* field, const json& value, score_function& out) const {
        std::string name;
        take(field, value, name);
        if (name == "softmax") {
            out = score_function::softmax;
        } else if (name == "sigmoid") {
            out = score_function::sigmoid;
        } else {
            require(name == "sqrtsoftplus", field, value, "is unknown; it is one of softmax, sigmoid, sqrtsoftplus");
            out = score_function::sqrt_softplus;
        }
    }

    std::string name_;
    json fields_ = json::object();
};

constexpr const char* usual_k = "num_experts_per_tok";

/// num_experts_per_tok and norm_topk_prob, which most have.
template <class Model>
void read_usual(const config_file& from, Model& m) {
    if constexpr (requires { m.num_experts_per_tok; }) {
        from.read({usual_k, "num_experts_per_token"}, m.num_experts_per_tok);
    }
    if constexpr (requires { m.moe_topk; }) from.read({"moe_topk", usual_k}, m.moe_topk);
    if constexpr (requires { m.moe_k; }) from.read({"moe_k", usual_k}, m.moe_k);
    if constexpr (requires { m.moe_top_k; }) from.read({"moe_top_k"}, m.moe_top_k);
    if constexpr (requires { m.top_k_experts; }) from.read({"top_k_experts"}, m.top_k_experts);
    if constexpr (requires { m.norm_topk_prob; }) {
        from.read({"norm_topk_prob", "moe_renormalize"}, m.norm_topk_prob);
    }
    if constexpr (requires { m.n_group; }) {
        from.read({"n_group", "num_expert_group"}, m.n_group);
        from.read({"topk_group"}, m.topk_group);
    }
    if constexpr (requires { m.routed_scaling_factor; }) {
        from.read({"routed_scaling_factor"}, m.routed_scaling_factor);
    }
    if constexpr (requires { m.scoring_func; }) from.read({"scoring_func"}, m.scoring_func);
    if constexpr (requires { m.route_scale; }) from.read({"route_scale", "routed_scaling_factor"}, m.route_scale);
}

/// What few have.
template <class Model>
void read_special(const config_file&, Model&) {}
void read_special(const config_file& from, models::deepseek_v2& m) {
    const std::string method = from.text("topk_method");
    sy::require(method.empty() || method == "greedy" || method == "group_limited_greedy", "topk_method = '", method,
                "' is unknown; it is one of greedy, group_limited_greedy");
    if (method != "group_limited_greedy") m.n_group = m.topk_group = 1;  // greedy, which is its default
}
void read_special(const config_file& from, models::dbrx& m) {
    const config_file experts = from.part("ffn_config");
    experts.read({"moe_top_k"}, m.moe_top_k);
    experts.read({"moe_normalize_expert_weights"}, m.moe_normalize_expert_weights);
    if (experts.is_null("moe_normalize_expert_weights")) m.moe_normalize_expert_weights = 0;
}
void read_special(const config_file& from, models::ernie4_5_moe& m) { from.read({"moe_norm_min"}, m.moe_norm_min); }
void read_special(const config_file& from, models::cohere2_moe& m) {
    from.read({"expert_selection_fn"}, m.expert_selection_fn);
}
void read_special(const config_file& from, models::longcat_flash& m) {
    // A preset says nothing of how many experts there are: E is the scores'.
    if (!from.is_given() || from.is_null("zero_expert_num")) m.zero_expert_num = 0;
    from.read({"zero_expert_num"}, m.zero_expert_num);
}
void read_special(const config_file& from, models::inkling& m) {
    from.read({"n_shared_experts"}, m.n_shared_experts);
    sy::require(m.n_shared_experts >= 0, "n_shared_experts = ", m.n_shared_experts, " must not be negative");
}
void read_special(const config_file& from, models::step3p7& m) {
    from.read({usual_k, "moe_top_k"}, m.num_experts_per_tok);
    from.read({"moe_router_scaling_factor"}, m.moe_router_scaling_factor);
}
void read_special(const config_file& from, models::muse_spark& m) {
    from.read({"output_multiplier"}, m.output_multiplier);
}
void read_special(const config_file& from, models::laguna& m) {
    from.read({"moe_router_logit_softcapping"}, m.moe_router_logit_softcapping);
    from.read({"moe_routed_scaling_factor"}, m.moe_routed_scaling_factor);
}
void read_special(const config_file& from, models::hy_v3& m) {
    from.read({"router_scaling_factor"}, m.router_scaling_factor);
}

void read_special(const config_file& from, models::nllb_moe& m) {
    from.read({"num_experts"}, m.num_experts);
    index_t capacity = m.expert_capacity.value_or(0);
    from.read({"expert_capacity"}, capacity);
    m.expert_capacity = capacity;
    if (from.is_null("expert_capacity")) m.expert_capacity.reset();  // its code's null: by the number of tokens
    from.read({"normalize_router_prob_before_dropping"}, m.normalize_router_prob_before_dropping);
    from.read({"batch_prioritized_routing"}, m.batch_prioritized_routing);
    from.read({"moe_eval_capacity_token_fraction"}, m.moe_eval_capacity_token_fraction);
    const std::string policy = from.text("second_expert_policy");
    sy::require(policy.empty() || policy == "all" || policy == "random" || policy == "sampling",
                "second_expert_policy = '", policy, "' is unknown; it is one of all, random, sampling");
    if (policy == "random") m.second_expert_policy = sy::second_choice::random;
    if (policy == "sampling") m.second_expert_policy = sy::second_choice::sampling;
}
void read_special(const config_file& from, models::phimoe& m) {
    from.read({"router_jitter_noise"}, m.router_jitter_noise);
}

struct preset {
    const char* name;
    sy::recipe_router<> (*make)(const config_file&);
    bool is_after = false;                                 ///< weights are a softmax over the chosen scores
    preset_settings (*own)(const config_file&) = nullptr;  ///< of a model that is no recipe
};

/// A model that is GShard's router, or SparseMixer.
preset_settings nllb(const config_file& from) {
    models::nllb_moe model;
    read_special(from, model);
    return {.router = {}, .gshard = sy::router_of(model)};
}
preset_settings phimoe(const config_file& from) {
    models::phimoe model;
    read_special(from, model);
    return {.router = {}, .sparse_mixer = sy::router_of(model)};
}

/// A model's struct, whose defaults are those of this model.
template <class Model>
sy::recipe_router<> made(Model model, const config_file& from) {
    read_usual(from, model);
    read_special(from, model);
    return sy::router_of(model);
}

constexpr models::glm4_moe like_glm(index_t k, double scale, bool normalizes = true) {
    return {.num_experts_per_tok = k, .routed_scaling_factor = scale, .norm_topk_prob = normalizes};
}

constexpr preset presets[] = {
    {"afmoe", [](const config_file& c) { return made(models::afmoe{}, c); }},
    {"aria", [](const config_file& c) { return made(models::aria{}, c); }, true},
    {"axk1", [](const config_file& c) { return made(models::deepseek_v3{}, c); }},
    {"axk2", [](const config_file& c) { return made(models::axk2{}, c); }},
    {"bailing_hybrid", [](const config_file& c) { return made(models::deepseek_v3{}, c); }},
    {"beam", [](const config_file& c) { return made(models::deepseek_v3{}, c); }},
    {"cohere2_moe", [](const config_file& c) { return made(models::cohere2_moe{}, c); }, true},
    {"dbrx", [](const config_file& c) { return made(models::dbrx{}, c); }},
    {"deepseek_v2", [](const config_file& c) { return made(models::deepseek_v2{}, c); }},
    {"deepseek_v3", [](const config_file& c) { return made(models::deepseek_v3{}, c); }},
    {"deepseek_v32", [](const config_file& c) { return made(models::deepseek_v3{}, c); }},
    {"deepseek_v4", [](const config_file& c) { return made(models::deepseek_v4{}, c); }},
    {"diffusion_gemma", [](const config_file& c) { return made(models::gemma4{}, c); }},
    {"dots1", [](const config_file& c) { return made(like_glm(6, 1, false), c); }},
    {"dots3_note", [](const config_file& c) { return made(like_glm(8, 1), c); }},
    {"ernie4_5_moe", [](const config_file& c) { return made(models::ernie4_5_moe{}, c); }},
    {"ernie4_5_vl_moe", [](const config_file& c) { return made(models::ernie4_5_moe{}, c); }},
    {"exaone_moe", [](const config_file& c) { return made(like_glm(8, 2.5), c); }},
    {"flex_olmo", [](const config_file& c) { return made(models::qwen3_moe{.num_experts_per_tok = 5}, c); }},
    {"flint", [](const config_file& c) { return made(models::flint{}, c); }},
    {"gemma4", [](const config_file& c) { return made(models::gemma4{}, c); }},
    {"glm4_moe", [](const config_file& c) { return made(models::glm4_moe{}, c); }},
    {"glm4_moe_lite", [](const config_file& c) { return made(like_glm(4, 1.8), c); }},
    {"glm4v_moe", [](const config_file& c) { return made(like_glm(8, 1), c); }},
    {"glm5_next", [](const config_file& c) { return made(like_glm(8, 2.5), c); }},
    {"glm_moe_dsa", [](const config_file& c) { return made(like_glm(8, 2.5), c); }},
    {"gpt_oss", [](const config_file& c) { return made(models::gpt_oss{}, c); }, true},
    {"granitemoe", [](const config_file& c) { return made(models::mixtral{}, c); }, true},
    {"granitemoe_swa", [](const config_file& c) { return made(models::mixtral{}, c); }, true},
    {"granitemoehybrid", [](const config_file& c) { return made(models::mixtral{}, c); }, true},
    {"granitemoeshared", [](const config_file& c) { return made(models::mixtral{}, c); }, true},
    {"hunyuan_v1_moe", [](const config_file& c) { return made(models::hunyuan_v1_moe{}, c); }},
    {"hy_v3", [](const config_file& c) { return made(models::hy_v3{}, c); }},
    {"hy_v4", [](const config_file& c) { return made(like_glm(8, 2.827), c); }},
    {"inkling", [](const config_file& c) { return made(models::inkling{}, c); }},
    {"inkling2", [](const config_file& c) { return made(models::inkling2{}, c); }},
    {"jamba", [](const config_file& c) { return made(models::jamba{}, c); }},
    {"jetmoe", [](const config_file& c) { return made(models::mixtral{}, c); }, true},
    {"kimi_k2", [](const config_file& c) { return made(like_glm(8, 2.827), c); }},
    {"kimi_linear", [](const config_file& c) { return made(like_glm(8, 2.446), c); }},
    {"kolibri1", [](const config_file& c) { return made(models::kolibri1{}, c); }},
    {"laguna", [](const config_file& c) { return made(models::laguna{}, c); }},
    {"lfm2_moe", [](const config_file& c) { return made(models::lfm2_moe{}, c); }},
    {"llama4", [](const config_file& c) { return made(models::llama4{}, c); }},
    {"longcat_flash", [](const config_file& c) { return made(models::longcat_flash{}, c); }},
    {"mellum", [](const config_file& c) { return made(models::qwen3_moe{.norm_topk_prob = true}, c); }},
    {"mimo_v2_flash", [](const config_file& c) { return made(like_glm(8, 1), c); }},
    {"minimax", [](const config_file& c) { return made(models::mixtral{}, c); }},
    {"minimax_m2", [](const config_file& c) { return made(models::minimax_m2{}, c); }},
    {"minimax_m3_vl", [](const config_file& c) { return made(models::minimax_m3{}, c); }},
    {"mistral4", [](const config_file& c) { return made(models::mistral4{}, c); }},
    {"mistral_large4", [](const config_file& c) { return made(models::mistral4{}, c); }},
    {"mixtral", [](const config_file& c) { return made(models::mixtral{}, c); }},
    {"muse_spark", [](const config_file& c) { return made(models::muse_spark{}, c); }},
    {"nemotron_h", [](const config_file& c) { return made(like_glm(2, 1), c); }},
    {"nllb_moe", nullptr, false, nllb},
    {"olmoe", [](const config_file& c) { return made(models::qwen3_moe{}, c); }},
    {"openai_privacy_filter", [](const config_file& c) { return made(models::gpt_oss{}, c); }, true},
    {"pangu_pro_moe", [](const config_file& c) { return made(models::pangu_pro_moe{}, c); }},
    {"phimoe", nullptr, false, phimoe},
    {"qwen2_moe", [](const config_file& c) { return made(models::qwen2_moe{}, c); }},
    {"qwen3_5_moe", [](const config_file& c) { return made(models::aria{.moe_topk = 8}, c); }},
    {"qwen3_moe", [](const config_file& c) { return made(models::qwen3_moe{}, c); }},
    {"qwen3_next", [](const config_file& c) { return made(models::qwen3_next{}, c); }},
    {"qwen4_exp", [](const config_file& c) { return made(models::qwen3_next{}, c); }},
    {"solar_open", [](const config_file& c) { return made(like_glm(8, 1), c); }},
    {"step3p5", [](const config_file& c) { return made(models::step3p7{}, c); }},
    {"step3p7", [](const config_file& c) { return made(models::step3p7{}, c); }},
    {"zaya", [](const config_file& c) { return made(models::zaya{}, c); }},
};

const preset* find_preset(std::string_view name) {
    const auto* const found =
        std::find_if(std::begin(presets), std::end(presets), [&](const preset& p) { return p.name == name; });
    return found == std::end(presets) ? nullptr : found;
}

/// The model's name without the ending of its text part.
std::string model_of(const config_file& config) {
    std::string name = config.text("model_type");
    if (name.ends_with("_text")) name.resize(name.size() - 5);
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
}

/// Weights that are a softmax over the chosen scores are so for other options, too.
preset_settings settings_of(const preset& model, const config_file& config) {
    if (model.own != nullptr) return model.own(config);
    preset_settings made{.router = model.make(config), .is_after = model.is_after};
    made.is_after = made.is_after && made.router.score == score_function::softmax;
    return made;
}

std::string known_presets() {
    std::string names;
    for (const preset& p : presets) names += (names.empty() ? "" : ", ") + std::string(p.name);
    return names;
}

}  // namespace

preset_settings preset_router(const char* option, const std::string& name) {
    const preset* const found = find_preset(name);
    sy::require(found != nullptr, option, " '", name, "' is unknown; it is one of ", known_presets());
    return settings_of(*found, {});
}

preset_settings configured_router(const char* option, const std::string& path) {
    std::ifstream file(path);
    sy::require(file.good() && !std::filesystem::is_directory(path), option, " '", path, "' cannot be read");
    const json read = json::parse(file, nullptr, false);
    sy::require(!read.is_discarded() && read.is_object(), path, ": is no JSON object");
    const config_file whole(path, read);
    // The part of a model of several that routes, with a name of its own or without.
    const config_file text = whole.part("text_config");
    const preset* const own = find_preset(model_of(text));
    const preset* const found = own != nullptr ? own : find_preset(model_of(whole));
    sy::require(found != nullptr, path, ": model_type '", model_of(whole), "' is unknown; it is one of ",
                known_presets());
    return settings_of(*found, text);
}

}  // namespace study
