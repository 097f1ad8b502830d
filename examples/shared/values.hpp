// What the text of an option stands for: numbers, names, and lists of names.
//
// A text that stands for nothing fails with an error message that names the option, the text and the rule.
#pragma once

#include <switchyard/switchyard.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <string>
#include <system_error>
#include <type_traits>
#include <vector>

namespace study {

namespace sy = switchyard;
using sy::index_t;

/// A value and what it is called, on the command line and in results.
template <class Value>
struct named {
    const char* name;
    Value value;
};

/// The name of a value: `name_of(routers_by_name, router_kind::base)` is "base".
template <class Value, std::size_t N>
const char* name_of(const named<Value> (&table)[N], Value value) {
    return std::find_if(std::begin(table), std::end(table), [value](const auto& entry) { return entry.value == value; })
        ->name;
}

/// All names of a table.
template <class Value, std::size_t N>
std::string names_of(const named<Value> (&table)[N], const char* between) {
    std::string names;
    for (const auto& entry : table) names += (names.empty() ? "" : between) + std::string(entry.name);
    return names;
}

/// The value that a name stands for.
template <class Value, std::size_t N>
Value value_in(const std::string& option, const named<Value> (&table)[N], const std::string& text) {
    const auto* const found =
        std::find_if(std::begin(table), std::end(table), [&](const auto& entry) { return text == entry.name; });
    sy::require(found != std::end(table), option, " '", text, "' is unknown; it is one of ", names_of(table, ", "));
    return found->value;
}

/// The values of names with commas between, each once.
template <class Value, std::size_t N>
std::vector<Value> values_in(const std::string& option, const named<Value> (&table)[N], const std::string& text) {
    std::vector<Value> values;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(',', begin), text.size());
        const std::string name = text.substr(begin, end - begin);
        const Value value = value_in(option, table, name);
        sy::require(std::find(values.begin(), values.end(), value) == values.end(), option, " '", text, "' names ",
                    name, " twice");
        values.push_back(value);
        begin = end + 1;
    }
    return values;
}

/// A whole text as one decimal number, nothing before or after it, in least..most. Floating-point numbers are finite.
template <class Number>
Number number_in(const std::string& option, const std::string& text,
                 Number least = std::numeric_limits<Number>::lowest(),
                 Number most = std::numeric_limits<Number>::max()) {
    constexpr bool is_whole = std::is_integral_v<Number>;
    Number number{};
    const char* const end = text.data() + text.size();
    const auto [stop, problem] = std::from_chars(text.data(), end, number);
    const bool is_number = problem != std::errc::invalid_argument && stop == end;
    sy::require(is_number, option, " '", text, "' is not a ", is_whole ? "whole " : "", "number",
                std::is_unsigned_v<Number> && text.starts_with('-') ? " that is not negative" : "");
    const bool is_held = problem == std::errc{};
    if (is_held && number >= least && number <= most) return number;  // NaN is not
    sy::require(most == std::numeric_limits<Number>::max(), option, " '", text, "' must lie in ", least, "..", most);
    sy::require(is_held, option, " '", text, "' is beyond what it can hold");
    if constexpr (!is_whole) {
        sy::require(std::isfinite(number), option, " '", text, "' must be finite");
        sy::require(least != 0, option, " '", text, "' must not be negative");
    }
    sy::fail(option, " '", text, "' must be at least ", least);
}

}  // namespace study
