#include "engine.hpp"

#include <algorithm>

float engine::largest(switchyard::matrix_view<const float> scores) {
    switchyard::require(!scores.empty(), "no scores, so none is largest");
    float found = scores(0, 0);
    for (switchyard::index_t i = 0; i < scores.rows; ++i) {
        for (switchyard::index_t j = 0; j < scores.columns; ++j) {
            found = std::max(found, scores(i, j));
        }
    }
    return found;
}
