// Properties: a statement that must hold for random inputs. Fixed seed: a run that passes once always passes; failing
// inputs are shrunk and printed.
#pragma once

#include <rapidcheck.h>

#include <iostream>
#include <string>

namespace switchyard_test {

/// A whole number least .. most, both possible.
inline long whole(long least, long most) { return *rc::gen::inRange<long>(least, most + 1); }
/// One of some values.
template <class... Values>
auto one_of(Values... values) {
    return *rc::gen::element(values...);
}
inline bool coin() { return whole(0, 1) == 1; }
/// A seed; not shrunk, since a smaller seed is no simpler input.
inline std::uint64_t any_seed() { return *rc::gen::noShrink(rc::gen::arbitrary<std::uint64_t>()); }

/// Whether the property holds in `cases` cases.
template <class Property>
bool holds(const std::string& name, int cases, Property&& property) {
    rc::detail::TestMetadata metadata;
    metadata.id = metadata.description = name;
    rc::detail::TestParams params;
    params.seed = 20260101;
    params.maxSuccess = cases;
    const auto result = rc::detail::checkTestable(std::forward<Property>(property), metadata, params);
    const bool success = result.template is<rc::detail::SuccessResult>();
    if (!success) rc::detail::printResultMessage(result, std::cerr);
    return success;
}

}  // namespace switchyard_test
