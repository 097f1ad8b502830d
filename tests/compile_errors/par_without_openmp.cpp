// `par` in a source compiled without -fopenmp says what to do.
// expect: switchyard::par needs OpenMP: compile with -fopenmp (CMake: link switchyard::openmp)
// expect: or pass your own threads with switchyard::par_on(pool)
#include <switchyard/backend/policy.hpp>

void use(long* counts) {
    const auto count = [&](switchyard::index_t b) { ++counts[b]; };
#ifndef WITHOUT_MISTAKE
    switchyard::par.parallel_for(4, count);
#else
    switchyard::seq.parallel_for(4, count);
#endif
}
