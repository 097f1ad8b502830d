// One thread of a kernel on the executor: the `here` of switchyard/backend/kernel.hpp.
//
// Each operation knows the line of the kernel that calls it: threads that meet must meet at one line, and errors name
// it.
#pragma once

#include "simt/block.hpp"

#include <switchyard/backend/kernel.hpp>

#include <atomic>
#include <bit>
#include <concepts>
#include <type_traits>

namespace switchyard_test::simt {

class here {
  public:
    here(simt::block& in, int thread) : block_(in), thread_(thread) {}
    here(const here&) = delete;
    here& operator=(const here&) = delete;

    int thread() const { return thread_; }
    index_t block() const { return block_.number(); }
    index_t blocks() const { return block_.blocks(); }

    void sync(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { block_.sync(thread_, {file, line}); }
    void sync_warp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        block_.exchange(thread_, operation::sync_warp, {file, line});
    }

    /// x of the given lane.
    template <class T>
    T shuffle(T x, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return shuffled(x, operation::shuffle, lane, lane, {file, line});
    }
    /// x of the lane whose number differs in these bits.
    template <class T>
    T shuffle_xor(T x, int distance, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return shuffled(x, operation::shuffle_xor, distance, this->lane() ^ distance, {file, line});
    }
    /// x of the lane so many below; the lowest lanes, which have none, keep theirs.
    template <class T>
    T shuffle_up(T x, int distance, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        const int from = this->lane() >= distance ? this->lane() - distance : this->lane();
        return shuffled(x, operation::shuffle_up, distance, from, {file, line});
    }

    std::uint32_t ballot(bool condition, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return static_cast<std::uint32_t>(block_.exchange(thread_, operation::ballot, {file, line}, condition ? 1 : 0));
    }
    bool any(bool condition, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return block_.exchange(thread_, operation::any, {file, line}, condition ? 1 : 0) != 0;
    }
    std::int32_t highest_of_warp(std::int32_t key, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        for (int distance = 16; distance > 0; distance /= 2) {
            const std::int32_t other = shuffle_xor(key, distance, file, line);
            key = other > key ? other : key;
        }
        return key;
    }
    std::int32_t lowest_of_warp(std::int32_t key, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return ~highest_of_warp(~key, file, line);
    }
    std::uint32_t match(std::int32_t key, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        const auto given = static_cast<std::uint32_t>(key);
        return static_cast<std::uint32_t>(block_.exchange(thread_, operation::match, {file, line}, given));
    }

    template <class T>
    T* shared(index_t count, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
        if (count < 0) fail(*this, " asks for ", count, " numbers of shared memory (", place{file, line}, ")");
        return static_cast<T*>(block_.shared(thread_, pieces_++, static_cast<std::size_t>(count) * sizeof(T)));
    }

    template <class T>
    T load(const T* from, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        expect_device(from, "load", {file, line});
        block_.count_load(sizeof(T));
        return *from;
    }
    template <class T>
    void store(T* to, std::type_identity_t<T> x, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        expect_device(to, "store", {file, line});
        block_.count_store(sizeof(T));
        *to = x;
    }
    template <int N, class T>
    switchyard::number_vector<T, N> load_vector(const T* from, const char* file = __builtin_FILE(),
                                                int line = __builtin_LINE()) {
        expect_device(from, "load_vector", {file, line});
        expect_aligned(from, sizeof(T) * N, "load_vector", {file, line});
        block_.count_load(sizeof(T) * N);
        switchyard::number_vector<T, N> v;
        for (int i = 0; i < N; ++i) v.at[i] = from[i];
        return v;
    }
    template <class T, int N>
    void store_vector(T* to, const switchyard::number_vector<T, N>& v, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE()) {
        expect_device(to, "store_vector", {file, line});
        expect_aligned(to, sizeof(T) * N, "store_vector", {file, line});
        block_.count_store(sizeof(T) * N);
        for (int i = 0; i < N; ++i) to[i] = v.at[i];
    }

    /// Both return what was there before.
    template <std::integral T>
    T atomic_add(T* to, std::type_identity_t<T> n) {
        before_atomic(to, sizeof(T));
        return std::atomic_ref<T>(*to).fetch_add(n, std::memory_order_relaxed);
    }
    template <std::integral T>
    T atomic_min(T* to, std::type_identity_t<T> n) {
        before_atomic(to, sizeof(T));
        const std::atomic_ref<T> number(*to);
        T old = number.load(std::memory_order_relaxed);
        while (n < old && !number.compare_exchange_weak(old, n, std::memory_order_relaxed)) {
        }
        return old;
    }

    /// Orders memory as CUDA's fence does: what this thread stored before the fence comes before what another thread
    /// loads after a fence of its own, if between the two an atomic of this one was followed by one of the other at the
    /// same number. Atomics alone order nothing.
    void fence() {
        fenced_ = true;
        for (int i = 0; i < std::min(atomics_, recent); ++i) sanitizer::acquire(atomic_[i]);
        atomics_ = 0;
    }

    friend std::ostream& operator<<(std::ostream& to, const here& who) {
        return to << "thread " << who.thread_ << " of block " << who.block_.number();
    }

  private:
    static constexpr int recent = 8;

    int lane() const { return thread_ % switchyard::warp_lanes; }

    template <class T>
    T shuffled(T x, operation what, int asked, int from, place where) {
        static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable_v<T>,
                      "a shuffle moves numbers of 4 or 8 bytes");
        if (asked < 0 || asked >= switchyard::warp_lanes) {
            fail(*this, " asks ", what, " for ", what == operation::shuffle ? "lane " : "a distance of ", asked, " (",
                 where, "): a warp has lanes 0..31");
        }
        using bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
        return std::bit_cast<T>(static_cast<bits>(block_.exchange(thread_, what, where, std::bit_cast<bits>(x), from)));
    }

    void expect_device(const void* at, const char* what, place where) const {
        if (block_.is_shared(at)) {
            fail(*this, " gives ", what, " an address of shared memory (", where, "): it is for device memory");
        }
    }
    void expect_aligned(const void* at, std::size_t bytes, const char* what, place where) const {
        const std::size_t beyond = reinterpret_cast<std::uintptr_t>(at) % bytes;
        if (beyond != 0) {
            fail(*this, " gives ", what, " of ", bytes, " bytes an address ", beyond, " beyond a multiple of ", bytes,
                 " (", where, "): it must be aligned to its own size");
        }
    }
    void before_atomic(void* at, std::size_t bytes) {
        if (!block_.is_shared(at)) {
            block_.count_load(bytes);
            block_.count_store(bytes);
        }
        if constexpr (sanitizer::thread) {
            if (fenced_) sanitizer::release(at);
            atomic_[atomics_++ % recent] = at;
        }
    }

    simt::block& block_;
    const int thread_;
    int pieces_ = 0;  ///< of shared memory that this thread has asked for
    bool fenced_ = false;
    int atomics_ = 0;            ///< since the last fence
    void* atomic_[recent] = {};  ///< the most recent of them
};

static_assert(switchyard::kernel_thread<here>);

}  // namespace switchyard_test::simt
