#!/usr/bin/env python3
"""What each kernel takes of a device, from ptxas: registers, shared memory, and that nothing is spilled.

usage: resources.py --nvcc NVCC --table FILE [--write] SOURCE -- FLAG...

Compiles SOURCE for sm_80, sm_90 and sm_120 and reads what ptxas says of every kernel. Exit 1, with a line for each, if a
kernel spills registers or keeps numbers in local memory, or if the table in FILE names other kernels, or registers that are
further off than 8. --write writes the table instead. Dynamic shared memory is given at the launch and is not in here.
"""

import argparse
import pathlib
import re
import subprocess
import sys

ARCHITECTURES = ["80", "90", "120"]
BEGIN, END = "<!-- resources -->", "<!-- /resources -->"
CLOSE = 8  # registers: another version of ptxas may allot a few more or less


def without_arguments(name):
    """`void f<(e)1>(g<(e)1>)` without the list of arguments at its end."""
    depth = 0
    for i in range(len(name) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(name[i], 0)
        if depth == 0:
            return name[:i]
    return name


def short(name):
    """A kernel's name as a reader would say it."""
    name = re.sub(r"switchyard::(\w+_(serial|omp)::)?|detail::|^void ", "", without_arguments(name))
    name = re.sub(r"^run_kernel<(.*?) ?>$", r"\1", name)
    name = re.sub(r"\bconst\b|, cuda_space|\([\w:]+\)", "", name.replace("__nv_bfloat16", "bfloat16"))
    name = re.sub(r" +(?=[>,])|(?<=<) +| +$", "", name)
    return re.sub(r"^for_each_kernel<(.*)>$", r"each index: \1", name)


def compile_kernels(nvcc, source, flags):
    """{kernel: {arch: (registers, shared bytes, spilled bytes, stack bytes)}}"""
    # A fat binary is the devices' code alone: the host's is compiled with the tests.
    command = [nvcc, *flags, "-fatbin", str(source), "-o", "/dev/null", "-Xptxas", "-v"]
    for arch in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        complaints = [line for line in done.stdout.splitlines() if not re.match(r"ptxas info|\s+\d+ bytes", line)]
        sys.exit("\n".join([" ".join(command), *complaints]))
    said = subprocess.run(["c++filt"], input=re.sub(r"'(_Z\w+)'", r"' \1 '", done.stdout), stdout=subprocess.PIPE,
                          text=True, check=True).stdout
    kernels = {}
    entry = re.compile(r"Compiling entry function ' ?(.*?) ?' for 'sm_(\d+)a?'(.*?)(?=Compiling entry function|\Z)", re.DOTALL)
    for name, arch, text in entry.findall(said):
        registers = re.search(r"Used (\d+) registers", text)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        shared = re.search(r"(\d+) bytes smem", text)
        if not registers or not memory:
            sys.exit(f"resources.py cannot read what ptxas says of {name}:\n{text}")
        kernels.setdefault(short(name), {})[arch] = (
            int(registers[1]), int(shared[1]) if shared else 0, int(memory[2]) + int(memory[3]), int(memory[1]))
    return kernels


def table_of(kernels):
    lines = ["| kernel | " + " | ".join(f"sm_{arch}" for arch in ARCHITECTURES) + " | static shared memory |",
             "|---|" + "---:|" * (len(ARCHITECTURES) + 1)]
    for name, found in sorted(kernels.items()):
        registers = " | ".join(str(found[arch][0]) if arch in found else "-" for arch in ARCHITECTURES)
        lines.append(f"| `{name}` | {registers} | {max(f[1] for f in found.values())} |")
    return "\n".join(lines)


def registers_in(table):
    return {name: [int(n) for n in re.findall(r"\d+", rest)][:len(ARCHITECTURES)]
            for name, rest in re.findall(r"^\| `(.*?)` \|(.*)$", table, re.MULTILINE)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nvcc", required=True)
    parser.add_argument("--table", type=pathlib.Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()

    kernels = compile_kernels(options.nvcc, options.source, options.flags)
    wrong = []
    for name, found in sorted(kernels.items()):
        for arch, (_, _, spilled, stack) in sorted(found.items()):
            if spilled or stack:
                wrong.append(f"{name} on sm_{arch}: {spilled} bytes spilled, {stack} bytes of local memory")
    page = options.table.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    if options.write:
        options.table.write_text(f"{before}{BEGIN}\n\n{table_of(kernels)}\n\n{END}{after}")
    else:
        there, here = registers_in(page), registers_in(table_of(kernels))
        for name in sorted(there.keys() ^ here.keys()):
            wrong.append(f"{name} is {'only in the table' if name in there else 'not in the table'} of {options.table}")
        for name in sorted(there.keys() & here.keys()):
            if any(abs(a - b) > CLOSE for a, b in zip(there[name], here[name])):
                wrong.append(f"{name} takes {here[name]} registers, and {there[name]} in {options.table}")
    for line in wrong:
        print(line)
    print(f"{len(kernels)} kernels on {', '.join('sm_' + a for a in ARCHITECTURES)}: {len(wrong)} complaints")
    return 1 if wrong or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
