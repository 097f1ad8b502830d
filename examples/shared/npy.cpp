#include "npy.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace study {
namespace {

constexpr std::string_view magic = "\x93NUMPY";
// No router has more experts; it keeps a file of no tokens, whose size proves nothing, from asking for any memory.
constexpr index_t most_experts = index_t{1} << 24;

/// An open file that knows its path, for sentences, and how much is left to read.
class input_file {
  public:
    explicit input_file(const std::string& path) : path_(path) {
        std::error_code problem;
        const auto status = std::filesystem::status(path, problem);
        sy::require(std::filesystem::exists(status), path, ": ",
                    problem ? problem.message() : "No such file or directory");
        sy::require(!std::filesystem::is_directory(status), path, ": is a folder, not a .npy file");
        sy::require(std::filesystem::is_regular_file(status), path, ": is not a regular file");
        left_ = static_cast<index_t>(std::filesystem::file_size(path, problem));
        sy::require(!problem, path, ": ", problem.message());
        file_.reset(std::fopen(path.c_str(), "rb"));
        sy::require(file_ != nullptr, path, ": ", std::strerror(errno));
    }

    index_t left() const { return left_; }

    /// `what` is being read, should the file end before.
    void read(void* bytes, index_t count, const char* what) {
        require_left(count, what);
        const auto size = static_cast<std::size_t>(count);
        const std::size_t got = std::fread(bytes, 1, size, file_.get());
        require(got == size, std::ferror(file_.get()) != 0 ? std::strerror(errno) : "became shorter while it was read");
        left_ -= count;
    }

    void require_left(index_t count, const char* what) const {
        require(count <= left_, "is truncated: ", what, " takes ", count, " bytes, and ", left_, " are left");
    }

    template <class... Parts>
    void require(bool rule, const Parts&... parts) const {
        sy::require(rule, path_, ": ", parts...);
    }

  private:
    struct closer {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    std::string path_;
    index_t left_ = 0;
    std::unique_ptr<std::FILE, closer> file_;
};

/// What the header says.
struct array_header {
    std::optional<std::string> type;  ///< "<f4"
    std::optional<bool> fortran_order;
    std::optional<std::vector<index_t>> shape;
};

/// Reads the dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } in any order and spacing.
class header_reader {
  public:
    header_reader(const input_file& file, std::string_view text) : file_(file), text_(text) {}

    array_header read() {
        expect('{');
        while (!skip('}')) {
            read_entry();
            if (!skip(',')) {
                expect('}');
                break;
            }
        }
        skip_spaces();
        require(at_ == text_.size(), "something follows the dictionary");
        require(header_.type && header_.fortran_order && header_.shape,
                "it needs the keys descr, fortran_order and shape");
        return header_;
    }

  private:
    template <class... Parts>
    void require(bool rule, const Parts&... parts) const {
        file_.require(rule, "has a header that cannot be read, at character ", at_, ": ", parts...);
    }

    void read_entry() {
        const std::string key = read_string();
        expect(':');
        if (key == "descr" && !header_.type) {
            skip_spaces();
            require(at_ < text_.size() && (text_[at_] == '\'' || text_[at_] == '"'),
                    "its type is no single number type; scores are float16, float32 or float64");
            header_.type = read_string();
        } else if (key == "fortran_order" && !header_.fortran_order) {
            header_.fortran_order = read_bool();
        } else if (key == "shape" && !header_.shape) {
            header_.shape = read_shape();
        } else {
            require(false, "the key '", key, "' is unknown or stands twice");
        }
    }

    void skip_spaces() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') {
            ++at_;
        }
    }
    bool skip(char wanted) {
        skip_spaces();
        const bool found = at_ < text_.size() && text_[at_] == wanted;
        at_ += found ? 1 : 0;
        return found;
    }
    void expect(char wanted) { require(skip(wanted), "'", std::string(1, wanted), "' is missing"); }

    bool skip_word(std::string_view word) {
        const bool found = text_.substr(at_, word.size()) == word;
        at_ += found ? word.size() : 0;
        return found;
    }

    std::string read_string() {
        skip_spaces();
        const char quote = at_ < text_.size() ? text_[at_] : '\0';
        require(quote == '\'' || quote == '"', "a text in quotes is missing");
        const std::size_t end = text_.find(quote, at_ + 1);
        require(end != std::string_view::npos, "a text has no end");
        // Short and printable whatever stands there: it may be quoted in a sentence. No name that is known is longer.
        std::string found(text_.substr(at_ + 1, std::min(end - at_ - 1, std::size_t{40})));
        std::replace_if(
            found.begin(), found.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
        at_ = end + 1;
        return found;
    }

    bool read_bool() {
        skip_spaces();
        const bool yes = skip_word("True");
        require(yes || skip_word("False"), "fortran_order is neither True nor False");
        return yes;
    }

    std::vector<index_t> read_shape() {
        std::vector<index_t> shape;
        expect('(');
        while (!skip(')')) {
            skip_spaces();
            index_t length = -1;
            const auto [stop, problem] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), length);
            require(problem == std::errc{} && length >= 0, "a length in shape is no number that can be");
            at_ = static_cast<std::size_t>(stop - text_.data());
            skip_word("L");  // Python 2 wrote long integers so
            shape.push_back(length);
            require(shape.size() <= 32, "the shape has more than 32 lengths");
            if (!skip(',')) {
                expect(')');
                break;
            }
        }
        return shape;
    }

    const input_file& file_;
    std::string_view text_;
    std::size_t at_ = 0;
    array_header header_;
};

array_header read_header(input_file& file) {
    unsigned char start[8];
    file.require(file.left() > 0, "is empty");
    file.require(file.left() >= static_cast<index_t>(sizeof start), "is not a .npy file: it has only ", file.left(),
                 " bytes");
    file.read(start, sizeof start, "the file's beginning");
    file.require(std::memcmp(start, magic.data(), magic.size()) == 0, "is not a .npy file");
    const int major = start[6];
    const int minor = start[7];
    file.require(major >= 1 && major <= 3 && minor == 0, "has the NumPy format ", major, ".", minor,
                 "; 1.0, 2.0 and 3.0 can be read");
    unsigned char length_bytes[4] = {};
    file.read(length_bytes, major == 1 ? 2 : 4, "the header's length");
    const index_t length =
        length_bytes[0] | length_bytes[1] << 8 | length_bytes[2] << 16 | index_t{length_bytes[3]} << 24;
    file.require_left(length, "its header");
    std::string text(static_cast<std::size_t>(length), '\0');
    file.read(text.data(), length, "its header");
    return header_reader(file, text).read();
}

/// The scalar type that scores are stored in, and whether its bytes are the other way round.
struct stored_type {
    int bytes;
    bool swapped;
};

stored_type type_of(const input_file& file, const std::string& type, const char* what) {
    const bool is_float = type.size() == 3 && std::strchr("<>=", type[0]) != nullptr && type[1] == 'f' &&
                          std::strchr("248", type[2]) != nullptr;
    file.require(is_float, "holds numbers of type '", type, "'; ", what,
                 " are float16, float32 or float64 ('<f2', '<f4', '<f8')");
    const bool big = type[0] == '>' || (type[0] == '=' && std::endian::native == std::endian::big);
    return {type[2] - '0', big != (std::endian::native == std::endian::big)};
}

float value_of(std::uint16_t bits) { return static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(bits)); }
float value_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }
double value_of(std::uint64_t bits) { return std::bit_cast<double>(bits); }

template <class Bits>
Bits reversed(Bits bits) {
    Bits result = 0;
    for (std::size_t byte = 0; byte < sizeof(Bits); ++byte) {
        result = static_cast<Bits>(result << 8 | (bits & 0xff));
        bits = static_cast<Bits>(bits >> 8);
    }
    return result;
}

/// Reads `count` numbers to out[0], out[stride], out[2 stride], ...
template <class Bits, class Number>
void read_numbers(input_file& file, bool swapped, index_t count, Number* out, index_t stride) {
    constexpr index_t at_once = 1 << 15;
    std::vector<Bits> bits(static_cast<std::size_t>(std::min(count, at_once)));
    for (index_t done = 0; done < count;) {
        const index_t now = std::min(count - done, at_once);
        file.read(bits.data(), now * static_cast<index_t>(sizeof(Bits)), "its array");
        for (index_t i = 0; i < now; ++i, ++done) {
            const Bits b = bits[static_cast<std::size_t>(i)];
            out[done * stride] = value_of(swapped ? reversed(b) : b);
        }
    }
}

template <class Bits>
auto read_table(input_file& file, const array_header& header, bool swapped) {
    const index_t tokens = (*header.shape)[0];
    const index_t experts = (*header.shape)[1];
    sy::matrix<decltype(value_of(Bits{}))> table(tokens, experts);
    if (*header.fortran_order) {
        for (index_t e = 0; e < experts; ++e) {
            read_numbers<Bits>(file, swapped, tokens, table.data() + e, experts);
        }
    } else {
        read_numbers<Bits>(file, swapped, tokens * experts, table.data(), 1);
    }
    return table;
}

/// A sentence about the first number, row by row, that is no score.
template <class Number>
void require_scores(const input_file& file, const sy::matrix<Number>& table) {
    for (index_t t = 0; t < table.rows(); ++t) {
        for (index_t e = 0; e < table.columns(); ++e) {
            file.require(table(t, e) < std::numeric_limits<Number>::infinity(), "the score of (token ", t, ", expert ",
                         e, ") is ", std::isnan(table(t, e)) ? "NaN" : "+infinity",
                         "; scores are finite, or -infinity to forbid an expert");
        }
    }
}

std::string shape_text(std::span<const index_t> shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

void require_body(const input_file& file, index_t bytes) {
    file.require_left(bytes, "its array");
    file.require(file.left() == bytes, "has ", file.left() - bytes, " bytes after its array of ", bytes);
}

/// [count], with nothing behind it.
void require_list_shape(const input_file& file, const std::vector<index_t>& shape, index_t count, index_t number_bytes,
                        const char* needs) {
    file.require(shape.size() == 1 && shape[0] == count, "has the shape ", shape_text(shape), "; ", needs, " = (",
                 count, ",)");
    require_body(file, count * number_bytes);
}

void require_table_shape(const input_file& file, const std::vector<index_t>& shape, index_t number_bytes) {
    file.require(shape.size() == 2, "has the shape ", shape_text(shape), "; scores are [tokens, experts]");
    const index_t tokens = shape[0];
    const index_t experts = shape[1];
    file.require(experts >= 1, "has the shape ", shape_text(shape), ": there must be at least one expert");
    file.require(experts <= most_experts, "has the shape ", shape_text(shape), ": more than ", most_experts,
                 " experts");
    const bool fits = tokens <= std::numeric_limits<index_t>::max() / number_bytes / experts;
    file.require(fits, "has the shape ", shape_text(shape), ", which no file can hold");
    require_body(file, tokens * experts * number_bytes);
}

/// Calls f(bits) with a number of the type that `bytes` bytes of a float are read as.
template <class F>
auto with_bits(int bytes, const F& f) {
    if (bytes == 2) return f(std::uint16_t{});
    if (bytes == 4) return f(std::uint32_t{});
    return f(std::uint64_t{});
}

}  // namespace

score_table read_scores(const std::string& path) {
    input_file file(path);
    const array_header header = read_header(file);
    const stored_type type = type_of(file, *header.type, "scores");
    require_table_shape(file, *header.shape, type.bytes);
    return with_bits(type.bytes, [&]<class Bits>(Bits) {
        auto table = read_table<Bits>(file, header, type.swapped);
        require_scores(file, table);
        return score_table(std::move(table));
    });
}

score_table read_table_beside(const std::string& path, index_t tokens, index_t experts) {
    input_file file(path);
    const array_header header = read_header(file);
    const stored_type type = type_of(file, *header.type, "gradients");
    file.require(*header.shape == std::vector{tokens, experts}, "has the shape ", shape_text(*header.shape),
                 "; it must be that of the scores, ", shape_text(std::array{tokens, experts}));
    require_body(file, tokens * experts * type.bytes);
    return with_bits(type.bytes, [&]<class Bits>(Bits) {
        auto table = read_table<Bits>(file, header, type.swapped);
        for (index_t i = 0; i < tokens * experts; ++i) {
            file.require(std::isfinite(table.data()[i]), "the number of (token ", i / experts, ", expert ", i % experts,
                         ") is ", table.data()[i], "; it must be finite");
        }
        return score_table(std::move(table));
    });
}

std::vector<float> read_expert_numbers(const std::string& path, index_t experts) {
    input_file file(path);
    const array_header header = read_header(file);
    const stored_type type = type_of(file, *header.type, "numbers of experts");
    require_list_shape(file, *header.shape, experts, type.bytes, "it needs a number for each expert, (E,)");
    std::vector<float> numbers(static_cast<std::size_t>(experts));
    with_bits(type.bytes, [&]<class Bits>(Bits) {
        std::vector<decltype(value_of(Bits{}))> read(numbers.size());
        read_numbers<Bits>(file, type.swapped, experts, read.data(), 1);
        for (std::size_t e = 0; e < read.size(); ++e) {
            numbers[e] = static_cast<float>(read[e]);
            file.require(std::isfinite(numbers[e]), "the number of expert ", e, " is ", read[e],
                         "; it must be finite in float32");
        }
    });
    return numbers;
}

std::vector<std::uint8_t> read_mask(const std::string& path, index_t tokens) {
    input_file file(path);
    const array_header header = read_header(file);
    const std::string& type = *header.type;
    const bool is_known = type.size() == 3 && std::strchr("|<>=", type[0]) != nullptr &&
                          ((type[1] == 'b' && type[2] == '1') ||
                           (std::strchr("iu", type[1]) != nullptr && std::strchr("1248", type[2]) != nullptr));
    file.require(is_known, "holds numbers of type '", type, "'; a mask holds booleans or integers");
    const index_t bytes = type[2] - '0';
    require_list_shape(file, *header.shape, tokens, bytes, "a mask needs an entry for each token, (T,)");
    std::vector<std::uint8_t> read(static_cast<std::size_t>(tokens * bytes));
    file.read(read.data(), tokens * bytes, "its array");
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(tokens));
    for (index_t i = 0; i < tokens * bytes; ++i) {
        if (read[static_cast<std::size_t>(i)] != 0) mask[static_cast<std::size_t>(i / bytes)] = 1;
    }
    return mask;
}

sy::matrix<std::int32_t> read_ids(const std::string& path) {
    input_file file(path);
    const array_header header = read_header(file);
    const std::string& type = *header.type;
    const bool is_known = type == "<i4" || type == "<i8" || type == "=i4" || type == "=i8";
    file.require(is_known, "holds numbers of type '", type, "'; ids are int32 or int64 ('<i4', '<i8')");
    const std::vector<index_t>& shape = *header.shape;
    file.require(shape.size() == 1 || shape.size() == 2, "has the shape ", shape_text(shape),
                 "; ids have one dimension or two");
    file.require(!*header.fortran_order || shape.size() == 1, "is in Fortran order; ids are read in C order");
    const index_t rows = shape[0];
    const index_t columns = shape.size() == 2 ? shape[1] : 1;
    const index_t bytes = type[2] - '0';
    file.require(columns >= 1, "has the shape ", shape_text(shape), ": there must be at least one column");
    file.require(rows <= std::numeric_limits<index_t>::max() / bytes / columns, "has the shape ", shape_text(shape),
                 ", which no file can hold");
    require_body(file, rows * columns * bytes);
    sy::matrix<std::int32_t> ids(rows, columns);
    if (bytes == 4) {
        file.read(ids.data(), rows * columns * bytes, "its array");
        return ids;
    }
    std::vector<std::int64_t> wide(static_cast<std::size_t>(rows * columns));
    file.read(wide.data(), rows * columns * bytes, "its array");
    for (index_t i = 0; i < rows * columns; ++i) {
        const std::int64_t id = wide[static_cast<std::size_t>(i)];
        file.require(id >= std::numeric_limits<std::int32_t>::min() && id <= std::numeric_limits<std::int32_t>::max(),
                     "the id at (", i / columns, ", ", i % columns, ") is ", id, "; ids must fit 32 bits");
        ids.data()[i] = static_cast<std::int32_t>(id);
    }
    return ids;
}

std::vector<std::int64_t> read_offsets(const std::string& path, index_t tokens) {
    const sy::matrix<std::int32_t> numbers = read_ids(path);
    sy::require(numbers.columns() == 1 && numbers.rows() >= 2, path, ": is ", numbers.rows(), " x ", numbers.columns(),
                "; offsets are a list of at least two numbers");
    std::vector<std::int64_t> offsets(numbers.data(), numbers.data() + numbers.rows());
    sy::require(offsets.front() == 0, path, ": the first offset is ", offsets.front(), " and must be 0");
    for (std::size_t b = 1; b < offsets.size(); ++b) {
        sy::require(offsets[b - 1] <= offsets[b], path, ": offset ", b, " is ", offsets[b], ", less than the ",
                    offsets[b - 1], " before it");
    }
    sy::require(offsets.back() == tokens, path, ": the last offset is ", offsets.back(), " and must be T = ", tokens);
    return offsets;
}

std::string npy_header(const std::string& type, std::span<const index_t> shape) {
    std::string text = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape_text(shape) + ", }";
    constexpr std::size_t before = 10;  // magic, version, length
    text.append(63 - (before + text.size()) % 64, ' ');
    text += '\n';
    std::string header(magic);
    header += {'\x01', '\x00', static_cast<char>(text.size() & 0xff), static_cast<char>(text.size() >> 8)};
    return header + text;
}

}  // namespace study
