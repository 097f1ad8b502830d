// The command line of an example program, on CLI11: what all of them have.
#pragma once

#include "values.hpp"

#include <switchyard/switchyard.hpp>

#include <CLI/CLI.hpp>

#include <cstddef>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

namespace study {

/// Options are added to groups; `--help` and `--version` are there. A program derives its grammar from this.
class command_line {
  public:
    /// False where help or the version was asked for and printed; fails with an error message on what is not in the
    /// grammar.
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

    /// What the option was given; null where it was not.
    const std::string* given(const char* name) const {
        const CLI::Option* const option = app_.get_option(name);
        return option->count() == 0 ? nullptr : &option->results().front();
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

    /// One that is a number in least..most; `out` may be optional.
    template <class Number, class Out>
    CLI::Option* add_number(const char* name, const char* type, const std::string& what, Out& out,
                            Number least = std::numeric_limits<Number>::lowest(),
                            Number most = std::numeric_limits<Number>::max()) {
        return add(name, type, what, [&out, least, most](const char* option, const std::string& text) {
            out = number_in<Number>(option, text, least, most);
        });
    }
    /// One of a table's names.
    template <class Value, std::size_t N, class Out>
    CLI::Option* add_named(const char* name, const named<Value> (&table)[N], Out& out, const std::string& what) {
        return add(
            name, "{" + names_of(table, ",") + "}", what,
            [&table, &out](const char* option, const std::string& text) { out = value_in(option, table, text); });
    }
    /// Several of a table's names, with commas between.
    template <class Value, std::size_t N>
    CLI::Option* add_names(const char* name, const char* type, const named<Value> (&table)[N], std::vector<Value>& out,
                           const std::string& what) {
        return add(name, type, what, [&table, &out](const char* option, const std::string& text) {
            out = values_in(option, table, text);
        });
    }
    /// One that names a file, a folder (of type DIR) or something else (of type NAME).
    CLI::Option* add_path(const char* name, const char* type, const std::string& what, std::string& out) {
        const std::string asked = type;
        const char* const kind = asked == "DIR" ? "folder" : asked == "NAME" ? "name" : "file";
        return add(name, type, what, [&out, kind](const char* option, const std::string& text) {
            sy::require(!text.empty(), option, " '' is no ", kind);
            out = text;
        });
    }
    CLI::Option* add_flag(const char* name, const std::string& what, bool& out) {
        return app_.add_flag(name, out, what)->disable_flag_override()->group(group_);
    }

    CLI::App app_;
    std::string group_;
};

}  // namespace study
