#!/usr/bin/env bash
# Installs what the study needs on Debian 12 (or a later one), builds examples/train_language_model in build/study of this
# checkout, and runs it where you are. Needs git's checkout and, where a package is missing, root or sudo.
#
#   bash cmake/setup_and_study.sh                  the study as it is by default: results and report.html in study-results
#   bash cmake/setup_and_study.sh --seeds 5 ...    with options of the program; --help lists them
set -euo pipefail
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

bash "$checkout/cmake/setup_and_test.sh" --packages g++ cmake ninja-build ccache libeigen3-dev libcli11-dev \
    nlohmann-json3-dev python3 python3-numpy python3-matplotlib

if command -v ccache >/dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER=ccache
fi
# Who only wants to run it is not stopped by what a newer compiler warns of.
(
    cd "$checkout"
    cmake --preset release -B build/study -G Ninja -DSWITCHYARD_CUDA=OFF -DSWITCHYARD_BUILD_TESTS=OFF \
        -DSWITCHYARD_BUILD_BENCHMARKS=OFF -DSWITCHYARD_WERROR=OFF >/dev/null
    cmake --build build/study -j "$(nproc)" --target train_language_model
)
exec "$checkout/build/study/examples/train_language_model" "$@"
