// --format: arrays of a routing as kernels and all-to-alls take them, by the library's formats/.
//
// Files are named FORMAT_ARRAY.npy. Rows stand as the packages have them, within an expert by rising token.
// docs/route_scores.md has the table.
#pragma once

#include "npy.hpp"
#include "options.hpp"

#include <cstddef>
#include <string>
#include <vector>

namespace study {

/// An array to be written.
struct format_array {
    std::string name;  ///< "vllm_sorted_token_ids"
    std::string type;  ///< "<i4"
    std::vector<index_t> shape;
    std::vector<std::byte> bytes;
};

/// The arrays of all formats asked for. The plan's rows are sorted by token.
template <class S>
std::vector<format_array> format_arrays_of(const options& asked, sy::plan<S>& plan);

}  // namespace study
