// Two blocks write one number: a race that ThreadSanitizer must report, through OpenMP's runtime as the tests use it.
#include <switchyard/backend/policy.hpp>

#include <cstdio>

int main() {
    volatile long shared = 0;
    switchyard::par_on(switchyard::openmp{.threads = 2}).parallel_for(1000, [&](switchyard::index_t) {
        shared = shared + 1;
    });
    std::printf("%ld\n", shared);
    return 0;
}
