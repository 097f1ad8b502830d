#include <switchyard/core/memory.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace sy = switchyard;

namespace {

// Counts what is allocated and given back, in host memory.
struct counting_memory {
    using space = sy::host_space;
    static inline int allocations = 0;
    static inline std::size_t bytes_held = 0;

    static void* allocate(std::size_t bytes) {
        ++allocations;
        bytes_held += bytes;
        return sy::host_memory::allocate(bytes);
    }
    static void deallocate(void* pointer, std::size_t bytes) noexcept {
        bytes_held -= bytes;
        sy::host_memory::deallocate(pointer, bytes);
    }
};

}  // namespace

static_assert(!std::is_copy_constructible_v<sy::buffer<float>>);
static_assert(std::is_nothrow_move_constructible_v<sy::buffer<float>>);
static_assert(sy::matrix_like<sy::matrix<float>>);
static_assert(std::is_same_v<sy::view_type<const sy::matrix<float>&>, sy::matrix_view<const float>>);
static_assert(std::is_same_v<sy::view_type<sy::matrix<float>&>, sy::matrix_view<float>>);

TEST_CASE("buffer: allocates only when it needs more than it ever had, and gives everything back") {
    counting_memory::allocations = 0;
    {
        sy::buffer<double, counting_memory> b(10);
        CHECK(counting_memory::allocations == 1);
        CHECK(counting_memory::bytes_held == 80);
        double* const before = b.data();
        b.resize(3);
        CHECK(b.size() == 3);
        b.resize(10);
        CHECK(b.data() == before);
        CHECK(counting_memory::allocations == 1);
        b.resize(11);
        CHECK(counting_memory::allocations == 2);
        CHECK(counting_memory::bytes_held == 88);
        CHECK(b.end() - b.begin() == 11);
    }
    CHECK(counting_memory::bytes_held == 0);
}

TEST_CASE("buffer: an empty one holds nothing") {
    counting_memory::allocations = 0;
    sy::buffer<float, counting_memory> b;
    CHECK(b.size() == 0);
    b.resize(0);
    CHECK(counting_memory::allocations == 0);
    CHECK(b.begin() == b.end());
}

TEST_CASE("buffer: aligned to 64 bytes") {
    for (sy::index_t n = 1; n < 40; n += 3) {
        const sy::buffer<std::byte> b(n);
        CHECK(reinterpret_cast<std::uintptr_t>(b.data()) % 64 == 0);
    }
}

TEST_CASE("buffer: moving hands over the memory") {
    sy::buffer<int, counting_memory> a(4);
    a[3] = 7;
    int* const numbers = a.data();
    sy::buffer<int, counting_memory> b(std::move(a));
    CHECK(b.data() == numbers);
    CHECK(b[3] == 7);
    sy::buffer<int, counting_memory> c(2);
    c = std::move(b);
    CHECK(c.data() == numbers);
    CHECK(c.size() == 4);
}

TEST_CASE("matrix: shape, elements, and memory kept when it shrinks") {
    sy::matrix<float, counting_memory> m(2, 3);
    for (sy::index_t i = 0; i < 2; ++i) {
        for (sy::index_t j = 0; j < 3; ++j) {
            m(i, j) = static_cast<float>(10 * i + j);
        }
    }
    CHECK(m.data()[5] == 12.0f);
    CHECK(sy::as_view(m)(1, 1) == 11.0f);
    const auto& constant = m;
    CHECK(sy::as_view(constant).columns == 3);

    const int before = counting_memory::allocations;
    m.resize(1, 2);
    m.resize(3, 2);
    CHECK(counting_memory::allocations == before);
    CHECK(m.rows() == 3);
    CHECK(m.columns() == 2);
    CHECK(m.view().row_stride == 2);
}

TEST_CASE("matrix: a negative shape is an error that names it") {
    CHECK_THROWS_WITH_AS((sy::matrix<float>(-1, 4)), "a matrix cannot have -1 x 4 elements", sy::error);
    sy::matrix<float> m;
    CHECK_THROWS_AS(m.resize(4, -1), sy::error);
    CHECK(m.rows() == 0);
}
