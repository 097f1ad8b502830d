// The arrays of switchyard/formats/ on a device policy, against plain loops: what formats/formats_test.cpp checks on
// the CPU's.
#include "support/formats.hpp"
#include "support/property.hpp"
#include "thrust/device.hpp"

#include <doctest/doctest.h>

using namespace switchyard_test;

TEST_CASE("formats: the plain loops', for any choices, capacities and blocks") {
    device_scratch scratch;
    CHECK(holds("formats on a device are the plain loops'", 30, [&] {
        const index_t experts = whole(1, 20);
        const auto from = random_given(whole(0, 100), whole(1, std::min<long>(experts, 4)), experts, any_seed(),
                                       static_cast<std::uint64_t>(one_of(0, 1, 8)));
        const auto sentence = all_formats_difference(device, from, coin() ? sy::unlimited : whole(0, 40),
                                                     one_of(1, 2, 16), scratch, one_of(0, 3));
        if (!sentence.empty()) RC_FAIL(sentence);
    }));
}

TEST_CASE("formats: no tokens, all tokens at one expert, every expert of each, many tokens") {
    device_scratch scratch;
    CHECK(all_formats_difference(device, given_choices(0, 2, 4), sy::unlimited, 4, scratch) == "");
    given_choices one(300, 1, 6);
    std::fill_n(one.ids.data(), 300, std::int64_t{4});
    CHECK(all_formats_difference(device, one, sy::unlimited, 16, scratch) == "");
    CHECK(all_formats_difference(device, random_given(64, 16, 16, 2, 0), 50, 8, scratch) == "");
    CHECK(all_formats_difference(device, random_given(3000, 2, 8, 3), 600, 64, scratch, 5) == "");
    CHECK(all_formats_difference(device, random_given(200, 2, 64, 4), 9, 8, scratch) == "");
    covers<operation("formats")>(device);
}

TEST_CASE("formats: a table of an expert's rows holds any batch, since no load is known here") {
    device_scratch scratch;
    const auto from = random_given(50, 2, 8, 3);
    const auto ids = sy::copy_to_device(device, from.ids);
    const auto plan = sy::plan_from_choices(device, ids, 8);
    sy::matrix<std::int32_t, device_memory> masked(8, 49);
    sy::matrix<std::int32_t, device_memory> counts(1, 8);
    CHECK_THROWS_WITH_AS(sy::write_masked(device, plan, masked, counts),
                         "choices has room for 49 rows per expert; the plan has up to 50", sy::error);
}
