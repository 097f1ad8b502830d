#!/usr/bin/env python3
"""Links objects built for AVX2 (with and without OpenMP) and AVX-512 into one program: none may run another's code.

The linker keeps one copy of each inline function that two objects share, whichever object it comes from. So no function of
namespace switchyard may be in both, but for those that must be one in the whole program (the error class and its handler),
and no function of any namespace that is in both may use AVX-512 where it comes from the AVX-512 object. The first catches
what differs in any way; the second also what the library makes the compiler emit of std:: and Eigen.

usage: check_mixed_targets.py --source DIR --build DIR [--eigen DIR] [--level O0]... COMPILER [FLAGS...]
"""

import argparse
import itertools
import pathlib
import re
import shutil
import subprocess
import sys

AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt", "-mf16c"]
AVX512 = AVX2 + ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]

# One in the whole program on purpose: an error thrown by one object is caught by another, and there is one handler. None
# of them computes anything.
SHARED_ON_PURPOSE = re.compile(
    r"switchyard::(error::|(\w+::)?(print_and_abort|current_error_handler|set_error_handler)\()")
# Implicit default constructors of plain settings and results: they store the defaults written in the struct, and nothing can be
# written to inline them or to move them into the namespace of the instruction set.
DEFAULTED = re.compile(r"switchyard::(?:\w+::)*(\w+)(?:<.*>)?::\1\(\)$")
# What only AVX-512 has: 512-bit registers, the upper sixteen of the others, mask registers.
AVX512_OPERANDS = re.compile(r"%zmm\d+|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b|\{1to\d+\}")


def run(command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nexited with {done.returncode}:\n{done.stdout}")
    return done.stdout


def weak_functions(file):
    """Mangled -> readable names of the functions in an object of which the linker keeps one copy."""
    names = {}
    plain = run(["nm", "--defined-only", "-P", file]).splitlines()
    for line in plain:
        name, kind = line.split()[:2]
        if kind in "WwVu":
            names[name] = name
    readable = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, readable.stdout.splitlines()))


def code_of(file):
    """Mangled name -> disassembly of each function in an object."""
    code, name = {}, None
    for line in run(["objdump", "-d", "--no-show-raw-insn", file]).splitlines():
        header = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if header:
            name = header.group(1)
            code[name] = []
        elif name:
            code[name].append(line)
    return code


def clashes(objects, code):
    """What objects share and should not: function -> why."""
    bad = {}
    for (one, first), (other, second) in itertools.combinations(objects.items(), 2):
        for name in first.keys() & second.keys():
            readable = first[name]
            ours = re.match(r"(\S+ )?switchyard::", readable)
            excepted = SHARED_ON_PURPOSE.match(readable) or DEFAULTED.match(readable)
            if ours and name in code[one] and not excepted:
                bad.setdefault(readable, f"in {one} and {other}")
            if "avx512" in (one, other):
                uses = [line.strip() for line in code["avx512"].get(name, []) if AVX512_OPERANDS.search(line)]
                if uses:
                    bad[readable] = f"in {one} and {other}, with AVX-512: {uses[0]}"
    return [f"{why}: {readable}" for readable, why in sorted(bad.items())]


def check(args, level):
    build = args.build / level
    build.mkdir(parents=True)
    compiler, flags = args.command[0], args.command[1:] + [f"-{level}", f"-I{args.source}/include"]
    if args.eigen:
        flags += ["-isystem", args.eigen]
    here = pathlib.Path(__file__).resolve().parent / "mixed_targets"
    targets = {"avx2": AVX2, "avx2_openmp": AVX2 + ["-fopenmp"], "avx512": AVX512}
    for name, target in {**targets, "main": []}.items():
        run([compiler, *flags, *target, "-c", here / f"{name}.cpp", "-o", build / f"{name}.o"])

    objects = {name: weak_functions(build / f"{name}.o") for name in targets}
    bad = clashes(objects, {name: code_of(build / f"{name}.o") for name in targets})
    if bad:
        sys.exit(f"{compiler} -{level}: {len(bad)} functions that may run on the wrong machine\n" + "\n".join(bad))

    # Both orders: the linker keeps the copy of the first object.
    for order in (list(targets), list(reversed(targets))):
        program = build / "main"
        run([compiler, *flags, build / "main.o", *[build / f"{name}.o" for name in order], "-fopenmp", "-o", program])
        counts = ", ".join(f"{name} ({len(objects[name])})" for name in order)
        print(f"{compiler} -{level}, inline functions of {counts}: {run([program]).strip()}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--eigen")
    parser.add_argument("--level", action="append", help="of optimisation, O0 or O2; both if not given")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    shutil.rmtree(args.build, ignore_errors=True)
    for level in args.level or ["O0", "O2"]:
        check(args, level)


if __name__ == "__main__":
    main()
