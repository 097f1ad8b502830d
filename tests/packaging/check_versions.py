#!/usr/bin/env python3
"""Checks that the files which must repeat the library's version say the one of version.hpp.

usage: check_versions.py SOURCE VERSION
"""

import json
import pathlib
import re
import sys


def main():
    source, version = pathlib.Path(sys.argv[1]), sys.argv[2]
    port = json.loads((source / "cmake" / "vcpkg" / "ports" / "switchyard" / "vcpkg.json").read_text())
    citation = re.search(r"^version: (.+)$", (source / "CITATION.cff").read_text(), re.MULTILINE)
    said = {"vcpkg.json": port["version"], "CITATION.cff": citation[1] if citation else None}
    wrong = {name: found for name, found in said.items() if found != version}
    print(f"version.hpp says {version}; " + (f"others differ: {wrong}" if wrong else f"so do {', '.join(said)}"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
