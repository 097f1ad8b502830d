#!/usr/bin/env python3
"""Checks that every public header compiles alone, and twice in one file.

usage: check_headers.py [--jobs N] [--without REGEX] INCLUDE_DIR COMMAND...

COMMAND is a compiler with its flags. Headers whose path below INCLUDE_DIR matches the regular expression are left out, and so
are those in a folder detail/, which are parts of others, and the two halves of core/macros_*, which only make sense around a
whole umbrella. Exit 0 if all compile, 1 with the compiler's words about each that does not, 2 if there is nothing to check.
"""

import argparse
import concurrent.futures
import pathlib
import re
import subprocess
import sys

PARTS = re.compile(r"/detail/|/core/macros_(on|off)\.hpp$")


def compile_alone(command, include, header):
    """What the compiler says about the header; nothing if it compiles."""
    name = header.relative_to(include).as_posix()
    source = f"#include <{name}>\n" * 2
    run = subprocess.run([*command, "-fsyntax-only", "-x", "c++", "-"], input=source, capture_output=True, text=True)
    return f"{name}:\n{run.stderr}" if run.returncode else ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("include", type=pathlib.Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--without", type=re.compile, default=re.compile("$^"))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()

    headers = sorted(
        header
        for header in options.include.rglob("*.hpp")
        if not PARTS.search("/" + header.relative_to(options.include).as_posix()) and not options.without.search(header.relative_to(options.include).as_posix())
    )
    if not headers:
        print(f"no headers in {options.include}")
        return 2
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        complaints = list(filter(None, pool.map(lambda header: compile_alone(options.command, options.include, header), headers)))
    print("\n".join(complaints) or f"{len(headers)} headers compile alone")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
