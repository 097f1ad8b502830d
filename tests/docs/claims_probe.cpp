// A test program of which one case passes and the others do not, for support_matrix_test.py: the latter's claims must
// not be believed.
#include "support/covers.hpp"

#include <doctest/doctest.h>

#include <stdexcept>

using namespace switchyard_test;

TEST_CASE("passes") {
    CHECK(1 + 1 == 2);
    covers<operation("dispatch")>(switchyard::seq);
    covers<operation("dispatch"), operation("combine")>(switchyard::par);
}

TEST_CASE("fails after its claim") {
    covers<operation("projection")>(switchyard::seq);
    CHECK(1 + 1 == 3);
}

TEST_CASE("fails before its claim") {
    CHECK(1 + 1 == 3);
    covers<operation("sampling")>(switchyard::seq);
}

TEST_CASE("fails as it may" * doctest::may_fail()) {
    CHECK(1 + 1 == 3);
    covers<operation("auction")>(switchyard::seq);
}

TEST_CASE("throws") {
    covers<operation("statistics")>(switchyard::seq);
    throw std::runtime_error("thrown");
}

TEST_CASE("fails in a part") {
    SUBCASE("one") { CHECK(1 + 1 == 2); }
    SUBCASE("another") { CHECK(1 + 1 == 3); }
    covers<operation("initialisation")>(switchyard::seq);
}
