// The command line of an example program, on CLI11: what all of them have.
#pragma once

#include <switchyard/switchyard.hpp>

#include <CLI/CLI.hpp>

#include <iostream>
#include <string>

namespace study {

/// Options are added to groups; `--help` and `--version` are there. A program derives its grammar from this.
class command_line {
  public:
    /// False where help or the version was asked for and printed; fails with a sentence on what is not in the grammar.
    bool parse(int argc, const char* const* argv) {
        try {
            app_.parse(argc, argv);
        } catch (const CLI::Success& answered) {
            app_.exit(answered, std::cout, std::cerr);
            return false;
        } catch (const CLI::ParseError& problem) {
            switchyard::fail(problem.what(), " (--help lists the options)");
        }
        return true;
    }

  protected:
    command_line(const char* program, const char* about, const char* footer, std::size_t name_width)
        : app_(about, program) {
        const auto& v = switchyard::version;
        app_.set_help_flag("-h,--help", "Print this and exit");
        app_.set_version_flag("--version", std::string(program) + " " + std::to_string(v.major) + "." +
                                               std::to_string(v.minor) + "." + std::to_string(v.patch));
        app_.footer(footer);
        app_.get_formatter()->column_width(name_width);
    }

    /// An option of the present group, whose text `read(name, text)` takes.
    template <class Read>
    CLI::Option* add(const char* name, const std::string& type, const std::string& what, const Read& read) {
        return app_
            .add_option_function<std::string>(
                name, [name, read](const std::string& text) { read(name, text); }, what)
            ->type_name(type)
            ->group(group_);
    }

    CLI::App app_;
    std::string group_;
};

}  // namespace study
