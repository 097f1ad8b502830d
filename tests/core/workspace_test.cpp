#include <switchyard/core/workspace.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace sy = switchyard;

namespace {

struct counting_memory {
    using space = sy::host_space;
    static inline int allocations = 0;

    static void* allocate(std::size_t bytes) {
        ++allocations;
        return sy::host_memory::allocate(bytes);
    }
    static void deallocate(void* pointer, std::size_t bytes) noexcept { sy::host_memory::deallocate(pointer, bytes); }
};

using counted_workspace = sy::basic_workspace<counting_memory>;

// A step takes arrays of these sizes, some of them in an inner scope, and writes all of them.
void step(counted_workspace& scratch, const std::vector<sy::index_t>& sizes) {
    const auto outer = scratch.open();
    std::vector<std::pair<unsigned char*, sy::index_t>> taken;
    const auto take = [&](sy::index_t bytes, unsigned char mark) {
        auto* const p = scratch.take<unsigned char>(bytes);
        REQUIRE(reinterpret_cast<std::uintptr_t>(p) % 64 == 0);
        std::memset(p, mark, static_cast<std::size_t>(bytes));
        taken.emplace_back(p, bytes);
    };
    unsigned char mark = 1;
    for (const sy::index_t bytes : sizes) {
        take(bytes, mark++);
    }
    {
        const auto inner = scratch.open();
        auto* const p = scratch.take<unsigned char>(5000);
        std::memset(p, 0xEE, 5000);
    }
    take(100, mark++);
    // Nothing overlaps: every array still holds its own mark.
    for (std::size_t i = 0; i < taken.size(); ++i) {
        for (sy::index_t b = 0; b < taken[i].second; ++b) {
            REQUIRE(taken[i].first[b] == i + 1);
        }
    }
}

}  // namespace

TEST_CASE("workspace: after the first step of the largest shape nothing is allocated") {
    counted_workspace scratch;
    const std::vector<sy::index_t> largest{100, 70'000, 3, 200'000, 64, 65};
    const std::vector<sy::index_t> smaller{50, 30'000, 1, 0, 64, 7};
    step(scratch, largest);
    const int after_first = counting_memory::allocations;
    for (int i = 0; i < 5; ++i) {
        step(scratch, largest);
        step(scratch, smaller);
    }
    CHECK(counting_memory::allocations == after_first);
}

TEST_CASE("workspace: the end of a scope takes back what was taken in it, and no more") {
    sy::workspace scratch;
    const auto outer = scratch.open();
    auto* const kept = scratch.take<int>(1);
    *kept = 42;
    int* first = nullptr;
    {
        const auto inner = scratch.open();
        first = scratch.take<int>(1);
        *first = 1;
    }
    auto* const again = scratch.take<int>(1);
    CHECK(again == first);
    CHECK(again != kept);
    CHECK(*kept == 42);
}

TEST_CASE("workspace: growing leaves arrays that are in use where they are") {
    sy::workspace scratch;
    const auto scope = scratch.open();
    auto* const first = scratch.take<double>(8);
    for (int i = 0; i < 8; ++i) {
        first[i] = i;
    }
    for (int i = 0; i < 12; ++i) {
        auto* const more = scratch.take<double>(sy::index_t{1000} << i);
        more[0] = -1;
        more[(sy::index_t{1000} << i) - 1] = -1;
    }
    for (int i = 0; i < 8; ++i) {
        CHECK(first[i] == i);
    }
}

TEST_CASE("workspace: several chunks become one when the outermost scope ends") {
    counted_workspace scratch;
    {
        const auto scope = scratch.open();
        for (int i = 0; i < 6; ++i) {
            scratch.take<float>(sy::index_t{5000} << i);
        }
    }
    const sy::index_t held = scratch.size();
    const int allocations = counting_memory::allocations;
    {
        // One array as large as everything before fits without another allocation.
        const auto scope = scratch.open();
        scratch.take<std::byte>(held);
    }
    CHECK(scratch.size() == held);
    CHECK(counting_memory::allocations == allocations);
}

TEST_CASE("workspace: an array of no elements") {
    sy::workspace scratch;
    const auto scope = scratch.open();
    scratch.take<float>(0);
    auto* const one = scratch.take<float>(1);
    *one = 1.0f;
    CHECK(*one == 1.0f);
}

TEST_CASE("a workspace moves with its memory, and what is moved from is as good as new") {
    counted_workspace first;
    step(first, {1000, 5000});
    step(first, {1000, 5000});
    const sy::index_t held = first.size();
    const int before = counting_memory::allocations;
    counted_workspace second = std::move(first);
    CHECK(second.size() == held);
    step(second, {1000, 5000});
    CHECK(counting_memory::allocations == before);
    step(first, {64});  // NOLINT(bugprone-use-after-move)
    CHECK(first.size() > 0);
    std::vector<counted_workspace> many(2);
    many[0] = std::move(second);
    many.resize(20);
    CHECK(many[0].size() == held);
    many[0] = counted_workspace{};
    CHECK(many[0].size() == 0);
    static_assert(!std::is_copy_constructible_v<sy::workspace>);
    static_assert(std::is_nothrow_move_constructible_v<sy::workspace>);
}
