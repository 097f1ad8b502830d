// A constant view cannot become a mutable one.
// expect: matrix_view<const float>
// expect: matrix_view<float>
#include <switchyard/core/matrix_view.hpp>

void use(switchyard::matrix_view<const float> scores) {
#ifndef WITHOUT_MISTAKE
    switchyard::matrix_view<float> writable = scores;
#else
    switchyard::matrix_view<const float> writable = scores;
#endif
    static_cast<void>(writable);
}
