#!/usr/bin/env python3
"""Checks that a source file does not compile, and that the compiler's output says why in words a user can act on.

The file holds one or more lines `// expect: TEXT`; each TEXT must appear in the output. Its mistake stands between
`#ifndef WITHOUT_MISTAKE` and `#endif`: with -DWITHOUT_MISTAKE the file must compile, so that nothing else is what fails.
A line `// most lines: N` says how long the output may be. Where the mistake is a flag, the line `// mistake flags: FLAGS` has it instead: without these the file must compile.

usage: check_compile_error.py SOURCE COMPILER [FLAGS...]
"""

import re
import subprocess
import sys


def compile_source(command, source):
    run = subprocess.run(command + ["-fsyntax-only", source], capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def main():
    source, command = sys.argv[1], sys.argv[2:]
    with open(source, encoding="utf-8") as file:
        text = file.read()
    expected = re.findall(r"^\s*// expect: (.+?)\s*$", text, re.MULTILINE)
    if not expected:
        sys.exit(f"{source}: has no line `// expect: TEXT`")
    flags = [flag for line in re.findall(r"^// mistake flags: (.+)$", text, re.MULTILINE) for flag in line.split()]
    if not flags and "#ifndef WITHOUT_MISTAKE" not in text:
        sys.exit(f"{source}: does not mark its mistake by #ifndef WITHOUT_MISTAKE")

    status, output = compile_source(command + ["-DWITHOUT_MISTAKE"], source)
    if status != 0:
        sys.exit(f"{source}: does not compile without its mistake either:\n{output}")
    status, output = compile_source(command + flags, source)
    if status == 0:
        sys.exit(f"{source}: compiles, but must not")
    missing = [words for words in expected if words not in output]
    if missing:
        sys.exit(f"{source}: the compiler does not say: {missing}\nit says:\n{output}")
    most = re.search(r"^// most lines: (\d+)$", text, re.MULTILINE)
    if most and len(output.splitlines()) > int(most[1]):
        sys.exit(f"{source}: the compiler says more than {most[1]} lines:\n{output}")
    print(f"does not compile, saying: {'; '.join(expected)}")


if __name__ == "__main__":
    main()
