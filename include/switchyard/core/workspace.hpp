// Scratch memory that a training loop pays for once.
//
// A workspace hands out arrays within a scope and takes them all back when the scope ends. Memory is kept: once a step
// of the largest shape has run, later steps allocate nothing. One workspace serves one call at a time. A workspace can
// be moved outside of every scope; a moved-from workspace is like a new one.
//
//   workspace scratch;
//   {
//       const auto scope = scratch.open();
//       std::int64_t* counts = scratch.take<std::int64_t>(experts);   // 64-byte aligned, not initialised
//   }                                                                // back to where it was
#pragma once

#include <switchyard/core/config.hpp>
#include <switchyard/core/memory.hpp>
#include <switchyard/core/sizes.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

namespace switchyard {
inline namespace SWITCHYARD_TARGET {

template <class Memory>
class basic_workspace {
  public:
    basic_workspace() = default;
    explicit basic_workspace(const Memory& from) {
        for (auto& chunk : chunks_) {
            chunk = buffer<std::byte, Memory>(0, from);
        }
    }
    basic_workspace(const basic_workspace&) = delete;
    basic_workspace& operator=(const basic_workspace&) = delete;
    basic_workspace(basic_workspace&& other) noexcept { swap(other); }
    basic_workspace& operator=(basic_workspace&& other) noexcept {
        basic_workspace taken(std::move(other));
        swap(taken);
        return *this;
    }
    ~basic_workspace() = default;

    /// Returns what was taken since `open()` when it is destroyed.
    class scope {
      public:
        explicit scope(basic_workspace& owner) : owner_(owner), chunk_(owner.chunk_), used_(owner.used_) {
            ++owner_.depth_;
        }
        scope(const scope&) = delete;
        scope& operator=(const scope&) = delete;
        ~scope() { owner_.close(chunk_, used_); }

      private:
        basic_workspace& owner_;
        int chunk_;
        index_t used_;
    };

    [[nodiscard]] scope open() { return scope(*this); }

    /// `count` elements, 64-byte aligned, not initialised, valid until the scope ends. Fails where no index_t counts
    /// their bytes.
    template <class T>
    T* take(index_t count) {
        const index_t unpadded = static_cast<index_t>(bytes_of<T>(count));
        require(unpadded <= most_bytes, count, " elements of ", sizeof(T), " bytes are more than a workspace can hold");
        const index_t bytes = (unpadded + 63) / 64 * 64;
        while (bytes > room() - used_) {
            require(chunk_ + 1 < max_chunks, "a workspace holds at most ", max_chunks, " chunks");
            ++chunk_;
            used_ = 0;
            if (room() == 0) {
                grow(bytes);
            }
        }
        T* const taken = reinterpret_cast<T*>(chunks_[static_cast<std::size_t>(chunk_)].data() + used_);
        used_ += bytes;
        most_used_ = std::max(most_used_, used_);
        return taken;
    }

    /// Bytes held.
    index_t size() const { return total_; }

    /// The most bytes taken at once, as far as one piece of memory held them.
    index_t most_used() const { return most_used_; }

    /// Allocates now what later calls need, as `workspace_size` (backend/measure.hpp) or an earlier `size()` said. Only
    /// outside of every scope.
    void reserve(index_t bytes) {
        require(depth_ == 0, "a workspace cannot be given room while it is in use");
        if (bytes > total_) {
            chunks_[0].resize(bytes);
            total_ = bytes;
            for (std::size_t i = 1; i < chunks_.size(); ++i) {
                total_ += chunks_[i].size();
            }
        }
    }

  private:
    // Each new chunk is at least twice everything before it, so that 40 chunks exceed any memory.
    static constexpr int max_chunks = 40;

    static constexpr index_t smallest_chunk = 4096;

    // A quarter of what can be counted, so that no sum of two sizes wraps.
    static constexpr index_t most_bytes = index_t{1} << 61;

    void swap(basic_workspace& other) noexcept {
        chunks_.swap(other.chunks_);
        std::swap(chunk_, other.chunk_);
        std::swap(used_, other.used_);
        std::swap(total_, other.total_);
        std::swap(most_used_, other.most_used_);
        std::swap(depth_, other.depth_);
    }

    index_t room() const { return chunk_ < 0 ? -1 : chunks_[static_cast<std::size_t>(chunk_)].size(); }

    void grow(index_t bytes) {
        require(total_ <= most_bytes, "a workspace of ", total_, " bytes cannot grow further");
        const index_t twice = 2 * total_;
        const index_t size = std::max({bytes, twice, smallest_chunk});
        chunks_[static_cast<std::size_t>(chunk_)].resize(size);
        total_ += size;
    }

    // When the outermost scope ends and needed several chunks, they become one: the next step of this shape then
    // finds everything in place.
    void close(int chunk, index_t used) {
        --depth_;
        chunk_ = chunk;
        used_ = used;
        if (depth_ == 0 && chunks_[1].size() != 0) {
            merge();
        }
    }

    void merge() noexcept {
        const index_t everything = total_;
        for (auto& c : chunks_) {
            c = buffer<std::byte, Memory>(0, c.memory());
        }
        total_ = 0;
        chunk_ = -1;
        used_ = 0;
#if SWITCHYARD_EXCEPTIONS
        try {
            chunks_[0].resize(everything);
            total_ = everything;
        } catch (...) {  // no memory now: the next step asks again and may fail there, where it can be reported
        }
#else
        chunks_[0].resize(everything);
        total_ = everything;
#endif
    }

    std::array<buffer<std::byte, Memory>, max_chunks> chunks_;
    int chunk_ = -1;  // none yet
    index_t used_ = 0;
    index_t total_ = 0;
    index_t most_used_ = 0;
    int depth_ = 0;
};

/// The workspace of the CPU policies.
using workspace = basic_workspace<host_memory>;

}  // namespace SWITCHYARD_TARGET
}  // namespace switchyard
