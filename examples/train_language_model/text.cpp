#include "text.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>

namespace study {
namespace {

namespace fs = std::filesystem;

/// The files that a path stands for.
std::vector<fs::path> files_of(const std::string& path) {
    std::error_code problem;
    const fs::file_status status = fs::status(path, problem);
    sy::require(fs::exists(status), "--text ", path, " is not there");
    if (!fs::is_directory(status)) {
        return {path};
    }
    std::vector<fs::path> files;
    for (auto at = fs::recursive_directory_iterator(path, problem);
         !problem && at != fs::recursive_directory_iterator(); at.increment(problem)) {
        if (at->is_regular_file()) {
            files.push_back(at->path());
        }
    }
    sy::require(!problem, "--text ", path, ": ", problem.message());
    std::sort(files.begin(), files.end());
    return files;
}

}  // namespace

corpus::corpus(const std::vector<std::string>& paths, index_t context) : context_(context) {
    for (const std::string& path : paths) {
        for (const fs::path& file : files_of(path)) {
            std::ifstream in(file, std::ios::binary);
            bytes_.insert(bytes_.end(), std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
            sy::require(in.good() || in.eof(), "--text ", file.native(), " cannot be read");
        }
    }
    const index_t stretches = size() / stretch;
    sy::require(stretches >= every, "the text has ", size(), " bytes; at least ", every * stretch,
                " are needed, of which a tenth is held out");
    held_out_ = stretches / every * stretch;
}

void corpus::draw(std::uint64_t seed, std::uint32_t step, index_t count, batch& drawn) const {
    const index_t usable = stretch - context_;
    const index_t stretches = size() / stretch;
    const auto places = static_cast<std::uint64_t>((stretches - stretches / every) * usable);
    const sy::noise_key key{.seed = seed, .stream = 0x7e87, .step = step};
    drawn.text = bytes_;
    drawn.length = context_;
    drawn.places.resize(static_cast<std::size_t>(count));
    for (index_t t = 0; t < count; ++t) {
        const sy::philox_words random = sy::noise_words(key, t, 0);
        const std::uint64_t word = (std::uint64_t{random.word[0]} << 32) | random.word[1];
        const auto place = static_cast<index_t>(word % places);
        // Of every `every` stretches the last is passed over.
        const index_t number = place / usable;
        const index_t where = number / (every - 1) * every + number % (every - 1);
        drawn.places[static_cast<std::size_t>(t)] = where * stretch + context_ + place % usable;
    }
}

batch corpus::validation(index_t count) const {
    const index_t usable = stretch - context_;
    const index_t places = held_out_ / stretch * usable;
    batch made{.text = bytes_, .length = context_, .places = {}};
    count = std::min(count, places);
    for (index_t t = 0; t < count; ++t) {
        const index_t place = t * (places / count);
        made.places.push_back((place / usable * every + every - 1) * stretch + context_ + place % usable);
    }
    return made;
}

}  // namespace study
