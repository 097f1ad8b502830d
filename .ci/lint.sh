#!/usr/bin/env bash
# clang-tidy over every public header, with the checks of .clang-tidy: one source that includes them all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# nvcc takes these into kernels without a word and makes something else of them: core/bits.hpp has what it understands.
if grep -rnE 'std::(popcount|count[lr]_(zero|one)|bit_(width|floor|ceil)|has_single_bit|rot[lr])\b' include | grep -v '^include/switchyard/core/bits.hpp:'; then
    echo "Use switchyard/core/bits.hpp instead." >&2
    exit 1
fi

# nvcc 13 forgets which members are named where a braced list without a type is assigned in a template: x = {.c = 7} sets
# the first member there, without a word. What stands before a declaration's name is a type: a space in between.
untyped='(^|[;{}]|\) |else ) *[A-Za-z_*(][^ ;{}]*( = [^ ;{}]+)* = \{ *\.[a-z_]'
if ! printf 'f([](auto& r) { r.groups = {.kept = 2}; });\n' | grep -qE "$untyped" ||
    printf 'const rule made = {.factor = 2};\n' | grep -qE "$untyped" ||
    grep -rnE "$untyped" include tests/thrust tests/cuda examples/*.cu bench/*.cu; then
    echo "Name the type of what is assigned: x = settings{.c = 7}." >&2
    exit 1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Thrust's headers come from elsewhere and take minutes, CUDA's are for nvcc; both are compiled with warnings as errors by
# the tests.
(cd include && find switchyard -name '*.hpp' ! -name 'thrust*' ! -name 'cuda*' | sort | sed 's/.*/#include <&>/') >"$folder/headers.cpp"
clang-tidy --quiet --config-file=.clang-tidy --warnings-as-errors='*' --header-filter="$PWD/include/.*" "$folder/headers.cpp" -- \
    -std=c++20 -fopenmp -I"$PWD/include" -isystem /usr/include/eigen3
echo "clang-tidy: $(wc -l <"$folder/headers.cpp") headers are clean"
