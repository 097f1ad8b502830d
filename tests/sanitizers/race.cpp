// Two threads write one number: a race that ThreadSanitizer must report, through OpenMP's runtime as the tests use it.
#include <switchyard/backend/policy.hpp>

#include <chrono>
#include <cstdio>
#include <thread>

int main() {
    volatile long shared = 0;
    switchyard::par_on(switchyard::openmp{.threads = 2}).parallel_for(100, [&](switchyard::index_t) {
        // Indices so slow that neither thread can have taken all of them before the other has begun.
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        shared = shared + 1;
    });
    std::printf("%ld\n", shared);
    return 0;
}
