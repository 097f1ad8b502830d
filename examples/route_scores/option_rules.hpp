// Which options go together.
#pragma once

#include "command_line.hpp"
#include "options.hpp"

namespace study {

/// Fails with an error message where top_k's options contradict each other, whatever the model is.
void require_possible(const top_k_options& given);

/// The same of all other options.
void require_possible(const options& asked);

/// Fails where an option was given that no chosen router uses: in a study that would be an unnoticed mistake.
void require_used(const options& asked, const command_line& line);

}  // namespace study
