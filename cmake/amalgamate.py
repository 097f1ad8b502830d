#!/usr/bin/env python3
"""Puts headers of the library and all they include of it into one file, for those who want a single header.

    python3 cmake/amalgamate.py --output single/switchyard.hpp                      the CPU umbrella
    python3 cmake/amalgamate.py without_eigen.hpp --output single/switchyard.hpp    the same without Eigen
    python3 cmake/amalgamate.py switchyard.hpp backend/threads.hpp cuda.hpp --output ...    several, in this order

usage: amalgamate.py [HEADER...] [--output FILE]        HEADER is a path below include/switchyard; standard output without FILE

The text is that of the headers, each where the preprocessor would read it first, with a guard of its own in place of
`#pragma once`: two such files may meet in one translation unit. What stands under a condition stays under it. The same headers
give the same bytes everywhere.
"""

import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'\s*#\s*include\s*(?:<([^>]+)>|"([^"]+)")')
CONDITION = re.compile(r"\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b")
ONCE = re.compile(r"\s*#\s*pragma\s+once\b")
BLANKS = re.compile(r"\n{3,}")


class Amalgamation:
    """The lines of a single header. `seen` is what has certainly been read by the line that comes next."""

    def __init__(self, include):
        self.include = include
        self.lines = []
        self.seen = set()

    def add(self, name):
        """Appends a header of the library, if it has not been read by now. One without `#pragma once` is read every time."""
        if name in self.seen:
            return
        path = self.include / name
        if not path.is_file():
            sys.exit(f"there is no {name} in {self.include}")
        lines = path.read_text(encoding="utf-8").splitlines()
        once = any(map(ONCE.match, lines))
        guard = "SWITCHYARD_SINGLE_" + re.sub(r"\W", "_", name.removeprefix("switchyard/")).upper()
        self.lines += ["", f"// ---- {name}"]
        if once:
            self.seen.add(name)
            self.lines += [f"#ifndef {guard}", f"#define {guard}"]
        self.add_lines(name, lines)
        if once:
            self.lines.append(f"#endif  // {guard}")

    def add_lines(self, name, lines):
        before = []  # what had been read before each condition that is open
        for number, line in enumerate(lines, 1):
            condition = CONDITION.match(line)
            include = INCLUDE.match(line)
            if ONCE.match(line):
                continue
            if condition:
                word = condition[1]
                if word.startswith("if"):
                    before.append(set(self.seen))
                elif word == "endif":
                    self.seen = before.pop()
                else:
                    self.seen = set(before[-1])
            if not include:
                self.lines.append(line)
            elif include[2]:
                sys.exit(f'{name}:{number}: an include in quotes, "{include[2]}"')
            elif include[1].startswith("switchyard/"):
                self.add(include[1])
            elif include[1] not in self.seen:
                self.seen.add(include[1])
                self.lines.append(line)
        if before:
            sys.exit(f"{name}: a condition is open at its end")


def version_of(include):
    text = (include / "switchyard" / "version.hpp").read_text(encoding="utf-8")
    return ".".join(re.findall(r"#define SWITCHYARD_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text))


def amalgamate(headers, include):
    made = Amalgamation(include)
    for header in headers:
        made.add(f"switchyard/{header}")
    title = f"switchyard {version_of(include)} in one file: {', '.join(headers)}. Made by cmake/amalgamate.py; change the headers instead."
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8").rstrip().splitlines()
    top = [title, "", *licence]
    return BLANKS.sub("\n\n", "\n".join([*(f"// {line}".rstrip() for line in top), *made.lines]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("headers", nargs="*", default=["switchyard.hpp"], metavar="HEADER")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    text = amalgamate(options.headers, ROOT / "include")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8", newline="\n")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
