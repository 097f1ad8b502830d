// Kernels with a mistake are caught: by a result that some order gets wrong, or by an error that says what happened.
// Those that only a sanitizer can see are in wrong.cpp.
#include "simt/executor.hpp"
#include "simt/wrong_kernels.hpp"

#include <switchyard/core/memory.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

using namespace switchyard_test;
using switchyard::index_t;

namespace {

using numbers = std::vector<std::int32_t>;

/// What a kernel writes, made by kernel_of(pointer to `count` numbers, pointer to 8 zeros), in each order of lanes.
template <class KernelOf>
std::map<simt::lane_order, numbers> results_of(index_t count, KernelOf&& kernel_of) {
    std::map<simt::lane_order, numbers> results;
    simt::for_each_order([&](simt::executor& device) {
        const switchyard::buffer<std::int32_t, simt::memory> to(count);
        const switchyard::buffer<std::int32_t, simt::memory> zeros(8);
        std::fill(zeros.begin(), zeros.end(), 0);
        simt::policy{&device}.launch(kernel_of(to.data(), zeros.data()), 1, 1024);
        results[device.order().lanes] = numbers(to.begin(), to.end());
    });
    return results;
}

/// A kernel that is a lambda.
template <int Threads, class F>
struct lambda_kernel : F {
    static constexpr int threads = Threads;
    explicit lambda_kernel(F f) : F(f) {}
    template <switchyard::kernel_thread Here>
    void operator()(Here& here) const {
        static_cast<const F&> (*this)(here);
    }
};

/// What the executor says of a kernel that breaks a rule, in each order; "" where it says nothing.
template <int Threads, class F>
std::set<std::string> complaints_of(F kernel, index_t blocks = 1, std::size_t shared_bytes = 256) {
    std::set<std::string> complaints;
    simt::for_each_order([&](simt::executor& device) {
        try {
            simt::policy{&device}.launch(lambda_kernel<Threads, F>(kernel), blocks, shared_bytes);
            complaints.insert("");
        } catch (const simt::error& complaint) {
            complaints.insert(complaint.what());
        }
    });
    return complaints;
}

/// All complaints, in every order, say this.
void check_all_say(const std::set<std::string>& complaints, const std::vector<std::string>& parts) {
    for (const std::string& complaint : complaints) {
        for (const std::string& part : parts) {
            CAPTURE(complaint);
            CAPTURE(part);
            CHECK(complaint.find(part) != std::string::npos);
        }
    }
}

/// Where this line is, as errors say it.
std::string line_of(int line) { return "(mistakes_test.cpp:" + std::to_string(line) + ")"; }

using lanes = simt::lane_order;

}  // namespace

// ThreadSanitizer would end this program at the races of the next two: wrong.cpp has it do so.
TEST_CASE("a missing sync: a warp that runs ahead finds junk" * doctest::skip(simt::sanitizer::thread)) {
    const numbers right{10, 20, 30, 0};
    for (const auto& [order, result] :
         results_of(4, [](std::int32_t*to, std::int32_t*) { return simt::read_next_warp<true>{to}; })) {
        CHECK(result == right);
    }
    auto wrong = results_of(4, [](std::int32_t* to, std::int32_t*) { return simt::read_next_warp<false>{to}; });
    CHECK(wrong[lanes::forward] == right);
    CHECK(wrong[lanes::reverse] == right);
    CHECK(wrong[lanes::greedy] != right);
    CHECK(wrong[lanes::greedy_last] != right);
    CHECK(wrong[lanes::random] != right);
}

TEST_CASE("a missing sync_warp: a lane that runs before its neighbour finds junk" *
          doctest::skip(simt::sanitizer::thread)) {
    auto right = results_of(32, [](std::int32_t* to, std::int32_t*) { return simt::read_lower_lane<true>{to}; });
    for (int lane = 1; lane < 32; ++lane)
        CHECK(right[lanes::forward][static_cast<std::size_t>(lane)] == 10 * lane - 10);
    for (const auto& [order, result] : right) CHECK(result == right[lanes::forward]);
    auto wrong = results_of(32, [](std::int32_t* to, std::int32_t*) { return simt::read_lower_lane<false>{to}; });
    CHECK(wrong[lanes::forward] == right[lanes::forward]);
    CHECK(wrong[lanes::reverse] != right[lanes::forward]);
    CHECK(wrong[lanes::random] != right[lanes::forward]);
    CHECK(wrong[lanes::greedy_last] != right[lanes::forward]);
}

TEST_CASE("a rank taken from an atomic is another one in another order") {
    auto right = results_of(32, [](std::int32_t* to, std::int32_t* zeros) {
        return simt::rank_in_kind<true>{zeros, to};
    });
    for (int lane = 0; lane < 32; ++lane) CHECK(right[lanes::forward][static_cast<std::size_t>(lane)] == lane / 3);
    for (const auto& [order, result] : right) CHECK(result == right[lanes::forward]);
    auto wrong = results_of(32, [](std::int32_t* to, std::int32_t* zeros) {
        return simt::rank_in_kind<false>{zeros, to};
    });
    CHECK(wrong[lanes::forward] == right[lanes::forward]);
    CHECK(wrong[lanes::reverse] != right[lanes::forward]);
    CHECK(wrong[lanes::random] != right[lanes::forward]);
}

TEST_CASE("a barrier that some threads do not reach") {
    const int line = __LINE__ + 2;
    const auto complaints = complaints_of<96>([](auto& here) {
        if (here.thread() != 40) here.sync();
    });
    CHECK(complaints == std::set<std::string>{"deadlock in block 0: threads 0..39 wait at sync " + line_of(line) +
                                              ", thread 40 has returned, threads 41..95 wait at sync " + line_of(line) +
                                              "; sync waits for every thread of the block"});
}

TEST_CASE("threads that wait at different barriers") {
    const int line = __LINE__ + 3;
    const auto complaints = complaints_of<64>([](auto& here) {
        if (here.thread() < 32) {
            here.sync();
        } else {
            here.sync();
        }
    });
    check_all_say(complaints, {"divergent barrier in block 0: thread ", "at sync " + line_of(line),
                               "at sync " + line_of(line + 2)});
}

TEST_CASE("a block that waits for a warp that waits for one of its lanes") {
    const int line = __LINE__ + 3;
    const auto complaints = complaints_of<64>([](auto& here) {
        if (here.thread() == 37) return;
        if (here.thread() >= 32) here.sync_warp();
        here.sync();
    });
    CHECK(complaints == std::set<std::string>{"deadlock in block 0: threads 0..31 wait at sync " + line_of(line + 1) +
                                              ", threads 32..36 wait at sync_warp " + line_of(line) +
                                              ", thread 37 has returned, threads 38..63 wait at sync_warp " +
                                              line_of(line) + "; warp 1 (threads 32..63) waits for lane 5"});
}

TEST_CASE("a shuffle by some of a warp's lanes") {
    const int line = __LINE__ + 3;
    const auto complaints = complaints_of<32>([](auto& here) {
        float x = 1.0f;
        if (here.thread() < 16) x = here.shuffle_xor(x, 1);
    });
    CHECK(complaints ==
          std::set<std::string>{"deadlock in block 0: threads 0..15 wait at shuffle_xor " + line_of(line) +
                                ", threads 16..31 have returned; warp 0 (threads 0..31) "
                                "waits for lane 16"});
    const auto beside_a_barrier = complaints_of<32>([](auto& here) {
        if (here.thread() % 2 == 0) here.ballot(true);
        here.sync();
    });
    check_all_say(beside_a_barrier, {"thread 0 waits at ballot", "thread 1 waits at sync", "and so on",
                                     "warp 0 (threads 0..31) waits for lane 1"});
}

TEST_CASE("lanes of one warp at different operations") {
    const int line = __LINE__ + 3;
    const auto complaints = complaints_of<64>([](auto& here) {
        if (here.thread() == 35) {
            here.shuffle_xor(1, 1);
        } else {
            here.sync_warp();
        }
    });
    check_all_say(complaints, {" of warp 1 of block 0 is at ", "lane 3", "shuffle_xor " + line_of(line),
                               "sync_warp " + line_of(line + 2)});
    const auto at_two_lines = complaints_of<32>([](auto& here) {
        if (here.thread() < 8) {
            here.any(true);
        } else {
            here.any(false);
        }
    });
    check_all_say(at_two_lines, {" of warp 0 of block 0 is at any (", "at any ("});
    const int third = __LINE__ + 3;
    const auto lane_three = [](auto& here) {
        if (here.thread() == 3) {
            here.match(0);
        } else {
            here.ballot(true);
        }
    };
    simt::executor forward;
    const std::string want =
        "lane 3 of warp 0 of block 0 is at match " + line_of(third) + ", lane 0 at ballot " + line_of(third + 2);
    CHECK_THROWS_WITH_AS(simt::policy{&forward}.launch(lambda_kernel<32, decltype(lane_three)>(lane_three), 1),
                         want.c_str(), simt::error);
}

TEST_CASE("a shuffle from a lane that no warp has") {
    for (const int lane : {-1, 32, 1000}) {
        check_all_say(complaints_of<32>([lane](auto& here) { here.shuffle(1, here.thread() == 5 ? lane : 0); }),
                      {"thread 5 of block 0 asks shuffle for lane " + std::to_string(lane) + " (mistakes_test.cpp:",
                       "a warp has lanes 0..31"});
        check_all_say(complaints_of<32>([lane](auto& here) { here.shuffle_xor(1.0, lane); }),
                      {"asks shuffle_xor for a distance of " + std::to_string(lane)});
        check_all_say(complaints_of<32>([lane](auto& here) { here.shuffle_up(1.0, lane); }),
                      {"asks shuffle_up for a distance of " + std::to_string(lane)});
    }
}

TEST_CASE("a vector access that is not aligned") {
    const switchyard::buffer<float, simt::memory> numbers(16);
    float* const at = numbers.data();
    const int line = __LINE__ + 1;
    check_all_say(complaints_of<32>([at](auto& here) { here.template load_vector<4>(at + 1); }),
                  {" of block 0 gives load_vector of 16 bytes an address 4 beyond a multiple of 16 " + line_of(line)});
    check_all_say(
        complaints_of<32>([at](auto& here) { here.store_vector(at + 3, switchyard::number_vector<float, 2>{}); }),
        {"gives store_vector of 8 bytes an address 4 beyond a multiple of 8"});
}

TEST_CASE("shared memory that the launch did not give") {
    const auto complaints = complaints_of<64>(
        [](auto& here) {
            here.template shared<std::uint8_t>(1);
            here.template shared<float>(60);
        },
        1, 255);
    check_all_say(complaints, {" of block 0 asks for 240 bytes of shared memory, 256 in all: the block was launched "
                               "with 255"});
    check_all_say(complaints_of<32>([](auto& here) { here.template shared<float>(-1); }),
                  {"asks for -1 numbers of shared memory (mistakes_test.cpp:"});
    check_all_say(complaints_of<32>([](auto& here) {
                      for (int i = 0; i < 40; ++i) here.template shared<float>(0);
                  }),
                  {"more than 32 pieces of shared memory"});
}

TEST_CASE("threads that ask for different shared memory") {
    const auto complaints =
        complaints_of<64>([](auto& here) { here.template shared<float>(here.thread() < 33 ? 8 : 9); });
    check_all_say(complaints, {" of block 0 asks for 3", " bytes of shared memory where thread "});
    CHECK(complaints.count("") == 0);
}

TEST_CASE("shared memory given to an access of device memory") {
    check_all_say(complaints_of<32>([](auto& here) {
                      float* const mine = here.template shared<float>(32);
                      here.load(mine + 31);
                  }),
                  {"gives load an address of shared memory (mistakes_test.cpp:", "it is for device memory"});
    check_all_say(complaints_of<32>([](auto& here) {
                      here.template shared<float>(3);
                      here.store(here.template shared<float>(32), 1.0f);
                  }),
                  {"gives store an address of shared memory"});
}

TEST_CASE("launches that cannot be") {
    const auto nothing = [](auto&) {};
    CHECK(complaints_of<32>(nothing) == std::set<std::string>{""});
    CHECK(complaints_of<1024>(nothing) == std::set<std::string>{""});
    check_all_say(complaints_of<0>(nothing), {"whole warps of 32 threads, 1024 threads at most, not 0"});
    check_all_say(complaints_of<40>(nothing), {"not 40"});
    check_all_say(complaints_of<1056>(nothing), {"not 1056"});
    check_all_say(complaints_of<32>(nothing, -1), {"a launch cannot have -1 blocks"});
    check_all_say(complaints_of<32>(nothing, 1, 99 * 1024 + 1), {"101377 bytes of shared memory a block"});
    check_all_say(complaints_of<32>([](auto&) {
                      simt::executor inner;
                      inner.launch(simt::count_blocks<true>{}, 1);
                  }),
                  {"a kernel cannot launch a kernel"});
}

TEST_CASE("what is wrong with one block ends the launch") {
    simt::executor device;
    const switchyard::buffer<std::int32_t, simt::memory> count(1);
    *count.data() = 0;
    const auto kernel = [at = count.data()](auto& here) {
        if (here.thread() == 0) here.atomic_add(at, 1);
        if (here.block() != 2 || here.thread() > 0) here.sync();
    };
    using kernel_type = lambda_kernel<32, decltype(kernel)>;
    CHECK_THROWS_AS(simt::policy{&device}.launch(kernel_type(kernel), 5), simt::error);
    CHECK(*count.data() == 3);
}
