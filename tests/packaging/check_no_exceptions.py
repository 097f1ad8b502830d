#!/usr/bin/env python3
"""Builds a program without exceptions and run-time types, and runs it: a broken rule must call the replaced handler.

usage: check_no_exceptions.py BUILD_DIR COMPILER [FLAGS...]
"""

import pathlib
import subprocess
import sys


def main():
    build, command = pathlib.Path(sys.argv[1]), sys.argv[2:]
    source = pathlib.Path(__file__).resolve().parent / "no_exceptions" / "main.cpp"
    build.mkdir(parents=True, exist_ok=True)
    program = build / "main"
    subprocess.run(command + ["-O1", "-fno-exceptions", "-fno-rtti", source, "-o", program], check=True)
    sys.exit(subprocess.run([program], check=False).returncode)


if __name__ == "__main__":
    main()
