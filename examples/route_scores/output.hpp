// A folder of results that appears complete or not at all.
//
// Files are written to a scratch folder beside the target and then moved in. A target that does not exist yet appears
// by one rename. In one that exists, files of the same names are replaced and all others stay; the old files are kept
// until everything is in place, and come back if anything fails. Whatever is not kept by `keep` is undone by the
// destructor.
//
// While an output_folder lives, SIGINT, SIGTERM and SIGHUP wait: writing stops at the next chunk, everything is undone,
// and the signal then ends the program as it would have. Ended by a signal means nothing written. (After SIGKILL a
// folder named .route_scores-XXXXXX may be left.)
#pragma once

#include <switchyard/switchyard.hpp>

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <signal.h>

namespace study {

/// Holds back the signals that would end the program halfway, and delivers them when destroyed.
class deferred_signals {
  public:
    deferred_signals();
    deferred_signals(const deferred_signals&) = delete;
    deferred_signals& operator=(const deferred_signals&) = delete;
    ~deferred_signals();

    /// Fails if such a signal has come.
    static void require_none();

    /// It is too late for them: they are ignored until the program ends.
    void ignore_from_now_on() { before_.clear(); }

  private:
    std::vector<std::pair<int, struct sigaction>> before_;
};

/// A new folder that is removed with all it holds.
class scratch_folder {
  public:
    /// Beside the target; within it, where the target is there and its neighbourhood is another device or read-only.
    explicit scratch_folder(const std::filesystem::path& target);
    scratch_folder(const scratch_folder&) = delete;
    scratch_folder& operator=(const scratch_folder&) = delete;
    ~scratch_folder();

    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

class output_folder {
  public:
    /// Fails, with nothing left behind, if the target is no folder or nothing can be written there.
    explicit output_folder(const std::string& target);
    output_folder(const output_folder&) = delete;
    output_folder& operator=(const output_folder&) = delete;
    ~output_folder();

    /// Writes a file of the results; `name` may lie in a subfolder.
    void write(const std::filesystem::path& name, const std::string& head, std::span<const std::byte> body);

    /// Moves all files to the target.
    void move_in();

    /// From here on the results stay, and a program that is about to end well does so.
    void keep() {
        done_.clear();
        signals_.ignore_from_now_on();
    }

  private:
    struct step {
        std::filesystem::path from;  ///< empty: `to` is a folder that was made
        std::filesystem::path to;
    };

    void move(const std::filesystem::path& from, const std::filesystem::path& to);
    void make_folder(const std::filesystem::path& folder);
    void place(const std::filesystem::path& name);

    deferred_signals signals_;
    std::filesystem::path target_;
    scratch_folder scratch_;
    std::vector<std::filesystem::path> names_;
    std::vector<step> done_;
};

}  // namespace study
