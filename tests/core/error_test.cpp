#include <switchyard/core/error.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace sy = switchyard;

namespace {

template <class... Parts>
std::string sentence_of(const Parts&... parts) {
    try {
        sy::fail(parts...);
    } catch (const sy::error& e) {
        return e.what();
    }
}

void other_handler(const char*) {}

}  // namespace

TEST_CASE("fail: the parts are joined into one sentence") {
    CHECK(sentence_of("k = ", 9, " must lie in 1..E = ", sy::index_t{8}) == "k = 9 must lie in 1..E = 8");
    CHECK(sentence_of(std::string("name "), std::string_view("view "), 'x' == 'x') == "name view true");
    CHECK(sentence_of(false) == "false");
    CHECK(sentence_of() == "");
}

TEST_CASE("fail: numbers of every type are written so that they can be read back") {
    CHECK(sentence_of(std::numeric_limits<std::int64_t>::min()) == "-9223372036854775808");
    CHECK(sentence_of(std::numeric_limits<std::uint64_t>::max()) == "18446744073709551615");
    CHECK(sentence_of(std::int8_t{-3}) == "-3");
    CHECK(sentence_of(std::uint8_t{200}) == "200");
    CHECK(sentence_of(1.25f) == "1.25");
    CHECK(sentence_of(-0.1) == "-0.1");
    CHECK(sentence_of(1e300) == "1e+300");
    CHECK(sentence_of(std::numeric_limits<double>::infinity()) == "inf");
    CHECK(sentence_of(-std::numeric_limits<float>::infinity()) == "-inf");
    CHECK(sentence_of(std::numeric_limits<float>::quiet_NaN()).find("nan") != std::string::npos);
}

TEST_CASE("require: silent while the rule holds, an error when it does not") {
    CHECK_NOTHROW(sy::require(true, "never said"));
    CHECK_THROWS_WITH_AS(sy::require(1 > 2, "1 is not above ", 2), "1 is not above 2", sy::error);
}

TEST_CASE("error: can be caught as std::runtime_error and copied without throwing") {
    static_assert(std::is_base_of_v<std::runtime_error, sy::error>);
    static_assert(std::is_nothrow_copy_constructible_v<sy::error>);
    CHECK_THROWS_AS(sy::fail("x"), std::runtime_error);
}

TEST_CASE("set_error_handler: returns the one it replaces, and null restores the default") {
    const sy::error_handler original = sy::set_error_handler(&other_handler);
    CHECK((original != nullptr));
    CHECK((sy::set_error_handler(nullptr) == &other_handler));
    CHECK((sy::set_error_handler(original) == original));
}
