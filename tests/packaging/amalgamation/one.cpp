// One of two translation units of a program that check_amalgamation.py builds from the header tree and from single
// headers.
#include SWITCHYARD_HEADER

#include "steps.hpp"

void other_steps();

int main() {
    steps::step("top-k", switchyard::top_k_router{.k = 2, .renormalize = true});
    steps::step("base", switchyard::base_router<>{});
    other_steps();
    try {
        switchyard::require(false, "an error of the other unit's class");
    } catch (const switchyard::error& fault) {
        std::puts(fault.what());
    }
}
