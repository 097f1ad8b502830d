// A type that nothing says how to view, given to a public function.
// expect: an argument cannot be viewed as a matrix
// expect: or a type with a view_access of its own
#include <switchyard/switchyard.hpp>

#include <vector>

void move(const switchyard::plan<float>& plan, const std::vector<std::vector<float>>& nested) {
#ifndef WITHOUT_MISTAKE
    static_cast<void>(switchyard::dispatch(switchyard::seq, plan, nested));
#else
    static_cast<void>(plan);
    static_cast<void>(nested);
#endif
}
