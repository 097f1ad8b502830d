#include "output.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include <stdlib.h>
#include <sys/stat.h>

namespace study {
namespace {

namespace fs = std::filesystem;
namespace sy = switchyard;

volatile sig_atomic_t signal_that_came = 0;

void note_signal(int number) { signal_that_came = number; }

/// Where `target` really is, links followed, so that beside it is on its own device.
fs::path resolved(const std::string& target) {
    std::error_code problem;
    fs::path path = fs::weakly_canonical(fs::absolute(target), problem);
    sy::require(!problem, target, ": ", problem.message());
    return path.has_filename() ? path : path.parent_path();
}

bool on_same_device(const fs::path& a, const fs::path& b) {
    struct stat first {};
    struct stat second {};
    return stat(a.c_str(), &first) == 0 && stat(b.c_str(), &second) == 0 && first.st_dev == second.st_dev;
}

/// A new folder in `parent`, or an empty path and errno.
fs::path made_in(const fs::path& parent) {
    std::string name = parent / ".route_scores-XXXXXX";
    return mkdtemp(name.data()) != nullptr ? fs::path(name) : fs::path();
}

}  // namespace

deferred_signals::deferred_signals() {
    signal_that_came = 0;
    const auto handle = [this](int number, void (*handler)(int)) {
        struct sigaction old {};
        sigaction(number, nullptr, &old);
        if (old.sa_handler == SIG_IGN) {
            return;  // ignored, under nohup for one: it stays so
        }
        struct sigaction now {};
        now.sa_handler = handler;
        sigaction(number, &now, nullptr);
        before_.emplace_back(number, old);
    };
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        handle(number, note_signal);
    }
    // These then become errors of the write that caused them.
    for (const int number : {SIGPIPE, SIGXFSZ}) {
        handle(number, SIG_IGN);
    }
}

deferred_signals::~deferred_signals() {
    for (const auto& [number, old] : before_) {
        sigaction(number, &old, nullptr);
    }
    if (signal_that_came != 0 && !before_.empty()) {
        raise(signal_that_came);
    }
}

void deferred_signals::require_none() {
    sy::require(signal_that_came == 0, "interrupted by signal ", static_cast<int>(signal_that_came));
}

scratch_folder::scratch_folder(const fs::path& target) {
    const fs::path parent = target.parent_path();
    std::error_code problem;
    const bool is_there = fs::exists(target, problem);
    sy::require(!is_there || fs::is_directory(target, problem), "--out ", target.native(), " is not a folder");
    if (!is_there || on_same_device(target, parent)) {
        path_ = made_in(parent);
    }
    const int reason = errno;
    if (path_.empty() && is_there) {
        path_ = made_in(target);
    }
    sy::require(!path_.empty(), "--out ", target.native(),
                " cannot be written: ", std::strerror(is_there ? errno : reason));
}

scratch_folder::~scratch_folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

output_folder::output_folder(const std::string& target) : target_(resolved(target)), scratch_(target_) {
    std::error_code problem;
    for (const char* part : {"new", "old"}) {
        fs::create_directory(scratch_.path() / part, problem);
        sy::require(!problem, "--out ", target, " cannot be written: ", problem.message());
    }
}

output_folder::~output_folder() {
    std::error_code ignored;
    for (; !done_.empty(); done_.pop_back()) {
        const step& last = done_.back();
        if (last.from.empty()) {
            fs::remove(last.to, ignored);
        } else {
            fs::rename(last.to, last.from, ignored);
        }
    }
}

void output_folder::write(const fs::path& name, const std::string& head, std::span<const std::byte> body) {
    constexpr std::size_t chunk = std::size_t{1} << 24;
    const fs::path path = scratch_.path() / "new" / name;
    const auto require = [&](bool rule) {
        sy::require(rule, "--out ", (target_ / name).native(), " cannot be written: ", std::strerror(errno));
    };
    std::error_code problem;
    fs::create_directories(path.parent_path(), problem);
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    require(file != nullptr);
    bool good = std::fwrite(head.data(), 1, head.size(), file) == head.size();
    for (std::size_t done = 0; good && signal_that_came == 0 && done < body.size(); done += chunk) {
        const std::size_t now = std::min(chunk, body.size() - done);
        good = std::fwrite(body.data() + done, 1, now, file) == now;
    }
    const int reason = errno;
    const bool closed = std::fclose(file) == 0;
    errno = good ? errno : reason;
    require(good && closed);
    deferred_signals::require_none();
    names_.push_back(name);
}

void output_folder::move(const fs::path& from, const fs::path& to) {
    std::error_code problem;
    fs::rename(from, to, problem);
    sy::require(!problem, "--out ", target_.native(), " cannot be written: ", to.filename().native(), ": ",
                problem.message());
    done_.push_back({from, to});
}

void output_folder::make_folder(const fs::path& folder) {
    std::error_code problem;
    if (fs::create_directory(folder, problem)) {
        done_.push_back({{}, folder});
    }
    sy::require(!problem, "--out ", folder.native(), " cannot be made: ", problem.message());
}

void output_folder::place(const fs::path& name) {
    const fs::path from = scratch_.path() / "new" / name;
    const fs::path to = target_ / name;
    const fs::path old = scratch_.path() / "old" / name;
    std::error_code problem;
    if (name.has_parent_path()) {
        make_folder(to.parent_path());
        fs::create_directories(old.parent_path(), problem);
    }
    const auto there = fs::symlink_status(to, problem);
    sy::require(there.type() != fs::file_type::directory, "--out ", to.native(),
                " is a folder where a result has to go");
    if (fs::exists(there)) {
        move(to, old);
    }
    move(from, to);
}

void output_folder::move_in() {
    std::error_code problem;
    if (!fs::exists(target_, problem)) {
        move(scratch_.path() / "new", target_);
    } else {
        for (const fs::path& name : names_) {
            place(name);
        }
    }
    deferred_signals::require_none();
}

}  // namespace study
