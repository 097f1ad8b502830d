// A type that nothing says how to view is refused by the concept's name, not from deep inside a router.
// expect: matrix_like
#include <switchyard/core/matrix_view.hpp>

#include <vector>

void use(std::vector<std::vector<float>>& nested) {
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::as_view(nested));
#else
    static_cast<void>(nested);
#endif
}
