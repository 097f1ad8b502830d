// Host numbers handed to a policy of CUDA's memory: refused by type. The policy stands in for nvcc's.
// expect: the scores do not lie in the memory this policy works in
#include <switchyard/kernels.hpp>

namespace sy = switchyard;

struct cuda_like_memory {
    using space = sy::cuda_space;
    static void* allocate(std::size_t) { return nullptr; }
    static void deallocate(void*, std::size_t) noexcept {}
};

struct cuda_like {
    using memory = cuda_like_memory;
    static constexpr bool runs_kernels = true;
    static constexpr sy::index_t most_lanes = 1;

    template <class Kernel>
    void launch(const Kernel&, sy::index_t, std::size_t = 0) const {}
    template <class F>
    void for_each(sy::index_t, const F&) const {}
    template <class Key>
    void sort_by_key(Key*, std::int64_t*, sy::index_t, sy::basic_workspace<memory>&) const {}
    void inclusive_sum(std::int64_t*, sy::index_t, sy::basic_workspace<memory>&) const {}
    void copy_to_host(void*, const void*, std::size_t) const {}
    void copy_to_device(void*, const void*, std::size_t) const {}
};

void route(const sy::matrix<float>& scores) {
    const cuda_like policy;
#ifndef WITHOUT_MISTAKE
    static_cast<void>(sy::route_scores(policy, sy::switch_router{}, scores));
#else
    static_cast<void>(sy::route_scores(policy, sy::switch_router{}, sy::copy_to_device(policy, scores)));
#endif
}
