#pragma once

#include <switchyard/core/matrix_view.hpp>

namespace engine {

/// The largest score. A view may cross a library's boundary.
float largest(switchyard::matrix_view<const float> scores);

}  // namespace engine
