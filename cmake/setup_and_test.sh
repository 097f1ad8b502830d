#!/usr/bin/env bash
# Installs what switchyard's build needs on Debian 12 (or a later one), then configures, builds and runs all tests in
# build/release. Needs git's checkout and, where a package is missing, root or sudo.
#
#   bash cmake/setup_and_test.sh                  everything
#   bash cmake/setup_and_test.sh --packages P...  only install the packages named, or, without a name, those of the build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Build tools and Eigen; then what tests, benchmarks and examples need; then the second compiler with its OpenMP, and the
# CPU systems of Thrust.
packages=(
    g++ cmake ninja-build ccache pkg-config python3 python3-numpy libeigen3-dev
    doctest-dev librapidcheck-dev libbenchmark-dev libcli11-dev nlohmann-json3-dev liblemon-dev
    clang libomp-dev libthrust-dev libtbb-dev
)

install_packages() {
    local missing=() package
    for package in "$@"; do
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} -eq 0 ]; then
        return
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "Run this as root, or install these packages first: ${missing[*]}" >&2
            exit 2
        fi
        as_root=(sudo)
    fi
    echo "Installing ${missing[*]}"
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

if ! command -v apt-get >/dev/null; then
    echo "No apt-get here. switchyard's tests need what these Debian packages hold: ${packages[*]}" >&2
elif [ "${1:-}" = --packages ] && [ $# -gt 1 ]; then
    install_packages "${@:2}"
else
    install_packages "${packages[@]}"
fi
if [ "${1:-}" = --packages ]; then
    exit 0
fi

if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi
jobs=$(nproc)
cmake --preset release -G Ninja
cmake --build --preset release -j "$jobs"
ctest --preset release -j "$jobs"
