// Owning storage: `buffer` (one array, grows and never shrinks) and `matrix` (a dense row-major buffer with a shape).
//
// Both are parameterised over `Memory`, which says where the bytes lie and how they are obtained: `host_memory` here,
// `thrust_memory` in backend/thrust.hpp, or an engine's own. A Memory has a `space`, `allocate(bytes)` (aligned
// to 64 bytes, never null) and `deallocate(pointer, bytes)`; it is copied into every owner, so that it may refer to a
// resource and a stream. New elements are not initialised. A size that is negative, or whose bytes no index_t counts,
// is an error.
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/error.hpp>
#include <switchyard/core/matrix_view.hpp>
#include <switchyard/core/sizes.hpp>

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

/// Aligned operator new and delete.
struct host_memory {
    using space = host_space;
    static constexpr std::size_t alignment = 64;

    static void* allocate(std::size_t bytes) { return ::operator new (bytes, std::align_val_t{alignment}); }
    static void deallocate(void* pointer, std::size_t /*bytes*/) noexcept {
        ::operator delete (pointer, std::align_val_t{alignment});
    }
};

/// What lies in it can be read and written by the CPU, here and now. Other memory is copied first.
template <class Memory>
concept host_readable = std::is_same_v<typename Memory::space, host_space>;

/// An array that keeps its memory: `resize` allocates only when it needs more than it ever had. Growing does not keep
/// the old elements. Movable, not copyable.
template <class T, class Memory = host_memory>
class buffer {
    static_assert(std::is_trivially_copyable_v<T>, "switchyard::buffer holds plain numbers");

  public:
    buffer() = default;
    explicit buffer(index_t count, const Memory& from = {}) : memory_(from) { resize(count); }
    buffer(buffer&& other) noexcept { swap(other); }
    buffer& operator=(buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    buffer(const buffer&) = delete;
    buffer& operator=(const buffer&) = delete;
    ~buffer() { release(); }

    void resize(index_t count) {
        const std::size_t bytes = bytes_of<T>(count);
        if (count > capacity_) {
            release();
            data_ = static_cast<T*>(memory_.allocate(bytes));
            capacity_ = count;
        }
        size_ = count;
    }

    T* data() const noexcept { return data_; }
    index_t size() const noexcept { return size_; }
    const Memory& memory() const noexcept { return memory_; }
    T* begin() const noexcept { return data_; }
    T* end() const noexcept { return data_ + size_; }
    T& operator[](index_t i) const noexcept requires host_readable<Memory> { return data_[i]; }

  private:
    void release() noexcept {
        if (data_ != nullptr) {
            memory_.deallocate(data_, static_cast<std::size_t>(capacity_) * sizeof(T));
        }
        data_ = nullptr;
        size_ = capacity_ = 0;
    }
    void swap(buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(capacity_, other.capacity_);
        std::swap(memory_, other.memory_);
    }

    [[no_unique_address]] Memory memory_{};
    T* data_ = nullptr;
    index_t size_ = 0;
    index_t capacity_ = 0;
};

/// A dense row-major matrix that keeps its memory when it shrinks.
template <class T, class Memory = host_memory>
class matrix {
  public:
    using space = typename Memory::space;

    matrix() = default;
    explicit matrix(const Memory& from) : numbers_(0, from) {}
    matrix(index_t rows, index_t columns, const Memory& from = {}) : numbers_(0, from) { resize(rows, columns); }
    /// A matrix that was moved from has 0 x 0 elements.
    matrix(matrix&& other) noexcept
        : numbers_(std::move(other.numbers_)),
          rows_(std::exchange(other.rows_, 0)),
          columns_(std::exchange(other.columns_, 0)) {}
    matrix& operator=(matrix&& other) noexcept {
        numbers_ = std::move(other.numbers_);
        rows_ = std::exchange(other.rows_, 0);
        columns_ = std::exchange(other.columns_, 0);
        return *this;
    }
    matrix(const matrix&) = delete;
    matrix& operator=(const matrix&) = delete;
    ~matrix() = default;

    void resize(index_t rows, index_t columns) {
        require(rows >= 0 && columns >= 0, "a matrix cannot have ", rows, " x ", columns, " elements");
        const index_t count = product_of_sizes("numbers", rows, columns);
        rows_ = columns_ = 0;  // what stays where no memory is to be had
        numbers_.resize(count);
        rows_ = rows;
        columns_ = columns;
    }

    index_t rows() const noexcept { return rows_; }
    index_t columns() const noexcept { return columns_; }
    T* data() const noexcept { return numbers_.data(); }
    matrix_view<T, space> view() { return {numbers_.data(), rows_, columns_}; }
    matrix_view<const T, space> view() const { return {numbers_.data(), rows_, columns_}; }
    T& operator()(index_t row, index_t column) const requires host_readable<Memory> {
        return numbers_[row * columns_ + column];
    }

  private:
    buffer<T, Memory> numbers_;
    index_t rows_ = 0;
    index_t columns_ = 0;
};

/// Where what a policy allocates comes from: the policy's own resource, or its kind of memory.
template <class Policy>
typename Policy::memory memory_of(const Policy& policy) {
    if constexpr (requires { policy.memory_resource(); }) {
        return policy.memory_resource();
    } else {
        return {};
    }
}

}  // namespace SWITCHYARD_TARGET

template <class T, class Memory>
struct view_access<matrix<T, Memory>> {
    SWITCHYARD_ALWAYS_INLINE static matrix_view<T, typename Memory::space> view(matrix<T, Memory>& m) {
        return m.view();
    }
    SWITCHYARD_ALWAYS_INLINE static matrix_view<const T, typename Memory::space> view(const matrix<T, Memory>& m) {
        return m.view();
    }
};

}  // namespace switchyard
