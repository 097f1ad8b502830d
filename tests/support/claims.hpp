// What the tests show of each operation on each backend: the table of docs/support_matrix.md.
//
// A test case says `covers<operation("dispatch"), operation("combine")>(policy)` (covers.hpp) behind the checks that
// exercise them. Where the environment's SWITCHYARD_COVERS names a file, the tests' main (claims_listener.hpp) writes
// there, a line each, what was said by test cases that ended without failure: the column, a tab and the operation. A
// test case that fails, or never ends, shows nothing. The last line, `end`, says how the program ended.
// tests/docs/support_matrix.py makes the table of these files.
//
// The standard library alone: the tests' main knows nothing of switchyard.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace switchyard_test {

/// The matrix's rows, in its order. The script reads them here.
inline constexpr std::string_view matrix_rows[] = {
    "Switch, forward",
    "Switch, backward",
    "top-k, forward",
    "top-k, backward",
    "BASE, training by the exact solver",
    "BASE, training by the auction",
    "BASE, training without waiting",
    "BASE, inference",
    "BASE, backward",
    "recipe, forward",
    "recipe, backward",
    "choices made elsewhere",
    "GShard",
    "SparseMixer",
    "noisy scores and load loss",
    "cosine scores",
    "update of the bias",
    "projection",
    "projection, backward",
    "input jitter and dropout",
    "logit jitter",
    "sampling",
    "load-balancing loss and its gradient",
    "z-loss and its gradient",
    "losses of any choices",
    "capacity and slots, drops by position",
    "drops by gate",
    "no token left behind",
    "dispatch",
    "dispatch, backward",
    "combine",
    "combine, backward",
    "identity experts",
    "exact assignment",
    "auction",
    "auction without waiting",
    "formats",
    "statistics",
    "initialisation",
    "a step in a CUDA graph",
};

/// The number of a row. A title that is no row does not compile where a constant is wanted.
constexpr std::size_t operation(std::string_view title) {
    for (std::size_t i = 0; i < std::size(matrix_rows); ++i) {
        if (matrix_rows[i] == title) return i;
    }
    throw std::invalid_argument("no such operation");
}

/// The matrix's columns: where an operation ran.
enum class matrix_column { eigen_seq, eigen_par, thrust_cpp, thrust_omp, thrust_tbb, cuda_emulated, cuda_run };

inline constexpr std::string_view matrix_columns[] = {
    "Eigen seq", "Eigen par", "Thrust CPP", "Thrust OMP", "Thrust TBB", "CUDA emulated", "CUDA run",
};

/// Column and operation. Test cases run one after the other, and their claims are made by the thread that runs them.
using claim_set = std::set<std::pair<matrix_column, std::size_t>>;

/// Of the test case that runs.
inline claim_set& claims_of_test_case() {
    static claim_set claims;
    return claims;
}

/// Of code for a GPU, whether or not there is one to run it: noted before main() by the program that holds it.
inline claim_set& compiled_claims() {
    static claim_set claims;
    return claims;
}

/// The name of the GPU, where there is one: set before the tests run.
inline std::string& device_name() {
    static std::string name;
    return name;
}

/// The file that SWITCHYARD_COVERS names, begun anew with the GPU's name and what is compiled for one into this
/// program.
class claims_file {
  public:
    claims_file() {
        const char* const path = std::getenv("SWITCHYARD_COVERS");
        if (path == nullptr || *path == '\0') return;
        if (const auto folder = std::filesystem::path(path).parent_path(); !folder.empty()) {
            std::filesystem::create_directories(folder);
        }
        file_.open(path, std::ios::trunc);
        if (!file_) throw std::runtime_error(std::string("SWITCHYARD_COVERS: cannot write ") + path);
        if (!device_name().empty()) line("device", device_name());
        for (const auto& [where, what] : compiled_claims()) {
            if (where == matrix_column::cuda_run) line("CUDA compiled", matrix_rows[what]);
        }
    }

    void add(const claim_set& claims) {
        for (const auto& [where, what] : claims)
            line(matrix_columns[static_cast<std::size_t>(where)], matrix_rows[what]);
    }

    void line(std::string_view name, std::string_view value) {
        if (file_.is_open()) file_ << name << '\t' << value << std::endl;
    }

  private:
    std::ofstream file_;
};

}  // namespace switchyard_test
