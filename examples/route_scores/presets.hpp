// Settings of models: by name with the defaults of their configuration classes, or as a config.json says.
//
// A name is a `model_type` of transformers. docs/router/models.md says what each sets.
#pragma once

#include <switchyard/switchyard.hpp>

#include <optional>
#include <string>

namespace study {

namespace sy = switchyard;
using sy::index_t;

/// A model's router, and whether its weights are a softmax over the k chosen scores; for router top_k, unless the model
/// has one of its own.
struct preset_settings {
    sy::recipe_router<> router;
    bool is_after = false;
    std::optional<sy::gshard_router> gshard{};              ///< of a model that is one, instead
    std::optional<sy::sparse_mixer_router> sparse_mixer{};  ///< the same
};

/// The router of a model with its defaults; without biases and scales of experts, which are files of their own. Fails
/// with a sentence that lists the known ones.
preset_settings preset_router(const char* option, const std::string& name);

/// The router of a config.json, whose model_type names the model. Where it has a text_config, fields are read there,
/// and a model_type that is known there counts. Fields that are missing or null have the model's defaults.
preset_settings configured_router(const char* option, const std::string& path);

}  // namespace study
