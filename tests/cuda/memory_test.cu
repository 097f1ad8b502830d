// Where device memory comes from on CUDA: a resource of the caller's, or an allocator such as Thrust's. Plans, matrices
// and workspaces made with it take their memory from it and nowhere else, give all of it back, and a second step of the
// same shape asks for nothing.
#include "thrust/device.hpp"

#include <doctest/doctest.h>
#include <thrust/device_allocator.h>

#include <cstddef>
#include <cstdint>
#include <map>

using namespace switchyard_test;

namespace {

/// What was handed out, and whether it came back as it was.
struct ledger {
    std::map<const void*, std::size_t> held;
    int asked = 0;   ///< pieces handed out since the beginning
    int broken = 0;  ///< pieces that came back with another size or stream, or were never handed out

    void hand_out(const void* piece, std::size_t bytes) {
        ++asked;
        held.emplace(piece, bytes);
    }
    void take_back(const void* piece, std::size_t bytes) {
        const auto found = held.find(piece);
        if (found == held.end() || found->second != bytes) {
            ++broken;
        } else {
            held.erase(found);
        }
    }
    bool holds(const void* address) const {
        const auto after = held.upper_bound(address);
        if (after == held.begin()) return false;
        const auto& [piece, bytes] = *std::prev(after);
        return static_cast<const char*>(address) < static_cast<const char*>(piece) + bytes;
    }
};

/// A resource of the caller's, over cudaMalloc.
class counting_resource final : public sy::cuda_resource {
  public:
    ledger book;

    void* allocate(std::size_t bytes, cudaStream_t stream) override {
        book.broken += stream == device.stream ? 0 : 1;
        void* piece = nullptr;
        sy::require_cuda(cudaMalloc(&piece, bytes), "cudaMalloc");
        book.hand_out(piece, bytes);
        return piece;
    }
    void deallocate(void* piece, std::size_t bytes, cudaStream_t stream) noexcept override {
        book.broken += stream == device.stream ? 0 : 1;
        book.take_back(piece, bytes);
        static_cast<void>(cudaFree(piece));
    }
};

/// Thrust's allocator of device memory, with a ledger.
struct counting_allocator : thrust::device_allocator<char> {
    using all_of_it = thrust::device_allocator<char>;
    using pointer = all_of_it::pointer;
    ledger book;

    pointer allocate(std::size_t bytes) {
        const pointer piece = all_of_it::allocate(bytes);
        book.hand_out(piece.get(), bytes);
        return piece;
    }
    void deallocate(pointer piece, std::size_t bytes) {
        book.take_back(piece.get(), bytes);
        all_of_it::deallocate(piece, bytes);
    }
};

constexpr index_t tokens = 500;
constexpr index_t experts = 24;
constexpr index_t width = 40;
constexpr index_t choices = 2;

/// Everything that a step of training reads and writes, from the policy's resource.
struct step {
    sy::cuda on;
    sy::top_k_router router{.k = choices, .capacity = {.factor = 1.0}, .z_weight = 1e-3};
    sy::matrix<float> host_scores = gaussian<float>(tokens, experts, 1);
    sy::device_matrix<sy::cuda, float> scores, x, rows, y, d_rows, d_gates, d_x, d_scores;
    device_plan<float> plan;
    device_scratch scratch;

    explicit step(const sy::cuda& policy)
        : on(policy),
          scores(sy::copy_to_device(on, host_scores)),
          x(sy::copy_to_device(on, gaussian<float>(tokens, width, 2))),
          rows(tokens * choices, width, memory_of(on)),
          y(tokens, width, memory_of(on)),
          d_rows(tokens * choices, width, memory_of(on)),
          d_gates(tokens, choices, memory_of(on)),
          d_x(tokens, width, memory_of(on)),
          d_scores(tokens, experts, memory_of(on)),
          plan(memory_of(on)),
          scratch(memory_of(on)) {}

    void run() {
        route_scores(on, router, scores, sy::training{.seed = 3}, plan, scratch);
        dispatch(on, plan, x, rows);
        combine(on, plan, rows, y);
        combine_backward(on, plan, rows, y, d_rows, d_gates);
        dispatch_backward(on, plan, d_rows, d_x);
        route_scores_backward(on, router, plan, scores, d_gates, d_scores, scratch);
    }

    /// The arrays of everything above that lie where they should.
    bool is_all_in(const ledger& book) const {
        const auto& made = plan.view();
        for (const void* const array :
             {static_cast<const void*>(scores.data()), static_cast<const void*>(x.data()),
              static_cast<const void*>(rows.data()), static_cast<const void*>(y.data()),
              static_cast<const void*>(d_rows.data()), static_cast<const void*>(d_x.data()),
              static_cast<const void*>(d_gates.data()), static_cast<const void*>(d_scores.data()),
              static_cast<const void*>(made.expert), static_cast<const void*>(made.slot),
              static_cast<const void*>(made.gate), static_cast<const void*>(made.offsets),
              static_cast<const void*>(made.order), static_cast<const void*>(made.row_maximum),
              static_cast<const void*>(made.totals)}) {
            if (!book.holds(array)) return false;
        }
        return true;
    }
};

/// Two steps with memory from `resource`, whose ledger is `book`.
void check_resource(sy::cuda_resource& resource, const ledger& book) {
    const sy::cuda on{.stream = device.stream, .resource = &resource};
    {
        step mine(on);
        mine.run();
        CHECK(mine.is_all_in(book));
        CHECK(mine.scratch.size() > 0);
        const int asked = book.asked;
        // Eight matrices, a plan of seven arrays, and the workspace.
        CHECK(book.held.size() == 16);
        mine.run();
        CHECK(book.asked == asked);

        // What a call allocates for itself comes from there, too.
        const auto copied = sy::dispatch(on, mine.plan, mine.x);
        CHECK(book.holds(copied.data()));
        CHECK(book.held.size() == 17);

        sy::check(on, mine.plan);
        const auto want = sy::route_scores(sy::seq, mine.router, mine.host_scores, sy::training{.seed = 3});
        CHECK(decision_difference(sy::copy_to_host(on, mine.plan), want) == "");
    }
    CHECK(book.held.empty());
    CHECK(book.broken == 0);
}

}  // namespace

TEST_CASE("device memory comes from the caller's resource, on the policy's stream, and goes back there") {
    counting_resource resource;
    check_resource(resource, resource.book);
}

TEST_CASE("device memory comes from Thrust's allocator, and goes back there") {
    counting_allocator allocator;
    sy::allocator_resource resource(allocator);
    check_resource(resource, allocator.book);
}

TEST_CASE("memory reserved before the first step is the last that is asked for") {
    counting_resource resource;
    {
        step mine({.stream = device.stream, .resource = &resource});
        mine.scratch.reserve(sy::workspace_size<sy::cuda>([&](const auto& policy, auto& room) {
            route_scores(policy, mine.router, mine.scores, sy::training{.seed = 3}, mine.plan, room);
            route_scores_backward(policy, mine.router, mine.plan, mine.scores, mine.d_gates, mine.d_scores, room);
        }));
        const int asked = resource.book.asked;
        CHECK(asked == 16);
        mine.run();
        CHECK(resource.book.asked == asked);
        sy::check(mine.on, mine.plan);
    }
    CHECK(resource.book.held.empty());
    CHECK(resource.book.broken == 0);
}
