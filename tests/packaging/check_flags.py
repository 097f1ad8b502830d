#!/usr/bin/env python3
"""Builds a program with every set of flags that docs/including_in_an_engine.md allows and runs each: the same right numbers.
Flags that are not allowed must not compile, with a reason.

usage: check_flags.py BUILD_DIR COMPILER [FLAGS...]
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

ASSOCIATIVE = ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-freciprocal-math"]
FAST = ["-ffast-math", "-fno-finite-math-only"]
# -O2 vectorises little: what a compiler rearranges, it rearranges at -O3.
ALLOWED = {
    "plain": ["-O2"],
    "fast": ["-O2", *FAST],
    "fast-avx": ["-O2", *FAST, "-mavx"],
    "fast-avx2": ["-O2", *FAST, "-mavx2", "-mfma"],
    "fast-native": ["-O3", *FAST, "-march=native"],
    "associative": ["-O3", *ASSOCIATIVE],
}
REFUSED = {"fast-math": ["-O2", "-ffast-math"], "finite-math": ["-O2", "-ffinite-math-only"], "Ofast": ["-Ofast"]}
SOURCE = pathlib.Path(__file__).resolve().parent / "flags" / "main.cpp"


def has(flag):
    """Whether the processor runs what the flags ask for."""
    return {"-mavx": " avx ", "-mavx2": " avx2 "}.get(flag, "") in pathlib.Path("/proc/cpuinfo").read_text() + " "


def checked(build, command, name):
    flags = ALLOWED[name]
    if not all(has(flag) for flag in flags):
        return f"{name}: not run, the processor has no such instructions", True
    program = build / name
    made = subprocess.run([*command, *flags, SOURCE, "-o", program], capture_output=True, text=True)
    if made.returncode != 0:
        return f"{name}: does not compile\n{made.stderr}", False
    ran = subprocess.run([program], capture_output=True, text=True)
    lines = ran.stdout.splitlines()
    return "\n".join([f"{name}: {'right' if ran.returncode == 0 else 'WRONG'}", *lines[:20]]), ran.returncode == 0


def refused(command, name):
    made = subprocess.run([*command, *REFUSED[name], "-fsyntax-only", SOURCE], capture_output=True, text=True)
    says = "switchyard needs NaN and infinities" in made.stderr
    return f"{name}: {'refused' if says else 'NOT REFUSED'}", made.returncode != 0 and says


def main():
    build, command = pathlib.Path(sys.argv[1]), sys.argv[2:]
    build.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [*pool.map(lambda name: checked(build, command, name), ALLOWED),
                   *pool.map(lambda name: refused(command, name), REFUSED)]
    for text, _ in results:
        print(text)
    sys.exit(0 if all(good for _, good in results) else 1)


if __name__ == "__main__":
    main()
