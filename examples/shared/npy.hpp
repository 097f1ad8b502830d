// NumPy's file format: scores are read from it, results written in it.
//
// A file is the bytes "\x93NUMPY", a version (two bytes), the header's length (2 bytes little-endian in version 1.0, 4
// in 2.0 and 3.0), the header (a Python dictionary of descr, fortran_order and shape, as text), and the numbers.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
//
// Nothing is believed: the header's length and the shape are held against the file's size before memory is asked for.
#pragma once

#include <switchyard/switchyard.hpp>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace study {

namespace sy = switchyard;
using sy::index_t;

/// Scores [tokens, experts], row-major: float for float16 and float32 files, double for float64.
using score_table = std::variant<sy::matrix<float>, sy::matrix<double>>;

/// Reads scores in C or Fortran order, little- or big-endian. Fails with an error message that begins with the path for
/// a file that cannot be read, is not .npy, is truncated or too long, has another rank or type, or holds NaN or
/// +infinity.
score_table read_scores(const std::string& path);

/// A table of finite numbers [tokens, experts] beside those scores, read as scores are.
score_table read_table_beside(const std::string& path, index_t tokens, index_t experts);

/// A finite number for each expert, [E], of float16, float32 or float64, which float32 must hold.
std::vector<float> read_expert_numbers(const std::string& path, index_t experts);

/// A mask of tokens, [T], of booleans or integers: 0 is padding, everything else is 1.
std::vector<std::uint8_t> read_mask(const std::string& path, index_t tokens);

/// Integers of 32 or 64 bits [rows, columns] (a list is one column), which int32 must hold.
sy::matrix<std::int32_t> read_ids(const std::string& path);

/// Where the sequences of T tokens begin, and the end of the last, [B + 1]: integers, rising from 0 to T.
std::vector<std::int64_t> read_offsets(const std::string& path, index_t tokens);

/// The header, from the magic bytes on, of a C-ordered array: `type` is "<i4" and the like.
std::string npy_header(const std::string& type, std::span<const index_t> shape);

/// How NumPy names a type of this machine.
template <class Number>
std::string npy_type() {
    const char order = std::endian::native == std::endian::little ? '<' : '>';
    return std::string(1, order) + (std::is_integral_v<Number> ? 'i' : 'f') + std::to_string(sizeof(Number));
}

}  // namespace study
