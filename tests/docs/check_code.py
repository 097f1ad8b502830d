#!/usr/bin/env python3
"""Checks that the C++ in the documentation is code that is compiled and run.

A fenced block marked ```cpp stands under a comment that names where it comes from, and equals it:

    <!-- code: examples/readme.cpp -->                    the whole file
    <!-- code: examples/engine_thread_pool.cpp [pool] --> the lines between `// [pool]` and `// [/pool]`
    <!-- code: tests/docs/worked_examples_test.cpp "switch: capacity" -->    that TEST_CASE

Indentation that all lines of a part share is left out. Also: links to files of the repository, and to headings in pages,
lead somewhere.

usage: check_code.py ROOT [PAGE...]      all pages of ROOT, or those given; exit 0, or 1 with one line a fault
       check_code.py --write ROOT        puts the sources' text into the pages of ROOT
"""

import pathlib
import re
import sys
import textwrap

MARKER = re.compile(r'^<!-- code: (\S+?)(?: \[(\w+)\]| "([^"]+)")? -->$')
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]*))?\)")


def part_between(lines, name):
    """The lines between // [name] and // [/name]."""
    stripped = [line.strip() for line in lines]
    first, last = stripped.index(f"// [{name}]"), stripped.index(f"// [/{name}]")
    return lines[first + 1 : last]


def test_case(lines, name):
    """A TEST_CASE, from its name to the brace in the first column that ends it."""
    first = next(i for i, line in enumerate(lines) if line.startswith(f'TEST_CASE("{name}")'))
    last = next(i for i in range(first, len(lines)) if lines[i] == "}")
    return lines[first : last + 1]


def source_of(root, marker):
    """The text a marker names; fails with a sentence."""
    path, part, case = marker.groups()
    file = root / path
    if not file.is_file():
        raise LookupError(f"there is no file {path}")
    lines = file.read_text().splitlines()
    try:
        lines = part_between(lines, part) if part else test_case(lines, case) if case else lines
    except (ValueError, StopIteration):
        raise LookupError(f"{path} has no part named {part or case}") from None
    return textwrap.dedent("\n".join(lines)).strip("\n")


def anchors_of(page):
    """The anchors that GitHub makes of a page's headings."""
    anchors, fenced = set(), False
    for line in page.read_text().splitlines():
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#+ ", line):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("#").strip()).lower()
            anchors.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return anchors


def check_link(page, target, anchor):
    """What is wrong with a link, or None."""
    file = page.parent / target
    if "://" in target:
        return None
    if not file.exists():
        return f"a link to {target}, which does not exist"
    if anchor and file.suffix == ".md" and anchor not in anchors_of(file):
        return f"a link to {target}#{anchor}, where there is no such heading"
    return None


def check_page(root, page):
    """Yields a sentence for each fault of a page."""
    lines = page.read_text().splitlines()
    marker, fence, start = None, None, 0
    for number, line in enumerate(lines, 1):
        if fence is not None:
            if line == "```":
                if fence == "cpp" and marker is None:
                    yield f"line {start}: this C++ names no source; a comment `<!-- code: FILE -->` above it must"
                elif marker is not None:
                    try:
                        source = source_of(root, marker)
                        if "\n".join(lines[start : number - 1]) != source:
                            yield f"line {start}: this is not the text of {' '.join(filter(None, marker.groups()))}"
                    except LookupError as fault:
                        yield f"line {start}: {fault}"
                marker = fence = None
        elif line.startswith("```"):
            fence, start = line[3:], number
        elif MARKER.match(line):
            marker = MARKER.match(line)
        elif line.startswith("<!-- code:"):
            yield f"line {number}: a marker that cannot be read"
        elif line:
            marker = None
        if fence is None:
            for target, anchor in LINK.findall(line):
                fault = check_link(page, target, anchor)
                if fault:
                    yield f"line {number}: {fault}"
    if fence is not None:
        yield f"line {start}: a fence that is not closed"


def write_page(root, page):
    """Replaces the text of every marked block by that of its source."""
    written, marker, fence = [], None, None
    for line in page.read_text().splitlines():
        if fence is not None and line == "```":
            if marker is not None:
                written.extend(source_of(root, marker).splitlines())
            marker = fence = None
        elif fence is not None and marker is not None:
            continue
        elif line.startswith("```"):
            fence = line
        elif line:
            marker = MARKER.match(line)
        written.append(line)
    page.write_text("\n".join(written) + "\n")


def pages_of(root):
    return [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("tests/*/README.md")]


def main(arguments):
    if arguments[0] == "--write":
        root = pathlib.Path(arguments[1]).resolve()
        for page in sorted(pages_of(root)):
            write_page(root, page)
        return 0
    root = pathlib.Path(arguments[0]).resolve()
    pages = [pathlib.Path(page).resolve() for page in arguments[1:]]
    pages = pages or sorted(pages_of(root))
    faults = [f"{page.relative_to(root)}: {fault}" for page in pages for fault in check_page(root, page)]
    print("\n".join(faults) if faults else f"{len(pages)} pages: all C++ is the text of its source, all links lead to files and headings")
    return 1 if faults or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
