#!/usr/bin/env bash
# All that waits for a GPU, in one run of at most eight minutes: the tests, the tools that check memory, the benchmark and the
# counters of its kernels, PyTorch beside it. Each part has a time limit and leaves its result even if the next one fails.
#
#   bash bench/gpu_visit.sh [--build DIR] [--out DIR] [--parts LIST]     default: build/gpu, gpu-visit, all parts
#   parts: device tests sanitizer bench counters peers
#
# The programs are built beforehand where nvcc is, for the device's architecture, and need nothing but a driver, CUDA's runtime
# library and the C library where they run; where DIR holds none, they are built first:
#   cmake --preset release -B build/gpu -DCMAKE_CUDA_ARCHITECTURES=90 -DSWITCHYARD_NATIVE=OFF \
#       -DCMAKE_EXE_LINKER_FLAGS="-static-libstdc++ -static-libgcc"
#   cmake --build build/gpu --target gpu_visit
#
# Writes report.md (what passed, the times), record.txt (what the tests showed, for tests/docs/support_matrix.py
# --recorded), counters.csv, peers.json and log.txt into the folder. Exit status: 0 if every test passed, 1 if not, 2 bad usage, 77 if there
# is no GPU: then it says what it would run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/gpu out=gpu-visit parts="device tests sanitizer bench counters peers"
while [ $# -gt 0 ]; do
    case "$1" in
        --build | --out | --parts)
            if [ $# -lt 2 ]; then
                echo "gpu_visit.sh: $1 needs a value" >&2
                exit 2
            fi
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        *)
            echo "gpu_visit.sh: $1 is no option; there are --build DIR, --out DIR and --parts LIST" >&2
            exit 2
            ;;
    esac
done
for part in $parts; do
    case "$part" in
        device | tests | sanitizer | bench | counters | peers) ;;
        *)
            echo "gpu_visit.sh: there is no part '$part'; there are device, tests, sanitizer, bench, counters and peers" >&2
            exit 2
            ;;
    esac
done

# Routing first: it is what most tests rest on.
tests=(routing more_routers slots plans formats losses rows auction assignment storage memory graph)
test_gpu=$build/tests/test_gpu
test_thrust=$build/tests/test_thrust_cuda
example=$build/examples/example_cuda_routing
gpu_bench=$build/bench/gpu_bench
status=0

# within SECONDS COMMAND...: into the log; its status, 124 at the limit, 127 where there is no such program.
within() {
    local limit=$1
    shift
    printf '\n$ %s\n' "$*" >>"$out/log.txt"
    timeout --kill-after=5 "$limit" "$@" >>"$out/log.txt" 2>&1
}

say() {
    printf '%s\n' "$*" | tee -a "$out/report.md"
}

# test_row NAME SECONDS COMMAND...: a line of the report, passed or not.
test_row() {
    local name=$1 limit=$2 began=$SECONDS code=0 result
    shift 2
    within "$limit" "$@" || code=$?
    case $code in
        0) result=passed ;;
        77) result=skipped ;;
        124 | 137) result="stopped after $limit s" ;;
        127) result="no such program" ;;
        *) result="**failed** ($code)" ;;
    esac
    if [ $code -ne 0 ] && [ $code -ne 77 ] && { [ $code -ne 124 ] || [ -z "${may_stop:-}" ]; }; then
        status=1
    fi
    say "| $name | $result | $((SECONDS - began)) |"
}

device() {
    say "Device and driver: $(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv,noheader 2>&1)"
    say "Compiler: $(nvcc --version 2>/dev/null | tail -n 1)"
    say "Commit: $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
}

tests() {
    local name
    say "" && say "| test | result | s |" && say "|---|---|---:|"
    mkdir -p "$out/covers"
    for name in "${tests[@]}"; do
        SWITCHYARD_COVERS="$out/covers/$name.txt" test_row "gpu/$name" 90 "$test_gpu" "--source-file=*/${name}_test.*"
    done
    test_row nvcc/runs 60 "$test_thrust"
    test_row gpu/example_cuda_routing 30 "$example"
    {
        echo "# What passing test cases showed on a GPU at commit $(git rev-parse --short HEAD 2>/dev/null) (bench/gpu_visit.sh)."
        echo "# $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sed 's/, /, driver /')"
        for name in "${tests[@]}"; do
            if [ "$(tail -n 1 "$out/covers/$name.txt" 2>/dev/null)" != "end	passed" ]; then
                echo "# gpu/$name had cases that failed."
            fi
        done
        cat "$out"/covers/*.txt | grep '^device	' | sort -u
        cat "$out"/covers/*.txt | grep '^CUDA run	' | sort -u
    } >"$out/record.txt"
}

sanitizer() {
    local tool name may_stop=yes
    say "" && say "| compute-sanitizer (stopped: no complaint until then) | result | s |" && say "|---|---|---:|"
    for tool in memcheck racecheck synccheck; do
        for name in slots rows routing; do
            test_row "$tool gpu/$name" 25 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 5 \
                "$test_gpu" "--source-file=*/${name}_test.*" --abort-after=1
        done
    done
}

bench() {
    say ""
    timeout 120 "$gpu_bench" 2>>"$out/log.txt" | tee "$out/bench.md" >>"$out/report.md"
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then
        say "" && say "**gpu_bench failed** or took more than 120 s."
        status=1
    fi
}

# Of every kernel of these operations once, after a run that does not count.
counters() {
    local row metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
    metrics+=,smsp__inst_executed.sum,smsp__issue_active.avg.pct_of_peak_sustained_active
    metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread,launch__grid_size,launch__block_size
    : >"$out/counters.csv"
    for row in "switch_route 65536 x 64" "switch_route_backward 65536 x 64" "switch_route 65536 x 256" \
        "top_k_route 65536 x 256" "top_k_route_backward 65536 x 256" "top_k_route 32 x 256" "groups_route 65536 x 256" \
        "bias_route 65536 x 384" "base_async_warm 65536 x 64"; do
        printf '# %s\n' "$row" >>"$out/counters.csv"
        timeout 40 ncu --clock-control none --csv --metrics "$metrics" \
            --kernel-name regex:run_kernel --launch-count 60 \
            "$gpu_bench" --quick --only "$row" >>"$out/counters.csv" 2>>"$out/log.txt" ||
            printf '# stopped or failed: %s\n' "$?" >>"$out/counters.csv"
    done
    say "" && say "Counters of kernels: $(grep -c gpu__time_duration "$out/counters.csv") launches in counters.csv."
}

peers() {
    say ""
    timeout 120 python3 bench/gpu_peers.py --no-compile --rows "$out/bench.md" --json "$out/peers.json" \
        >>"$out/report.md" 2>>"$out/log.txt" || say "PyTorch's forms: stopped, failed or not here ($?)."
}

if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    echo "gpu_visit.sh: there is no GPU here. It would run, in this order:"
    echo "  tests       $test_gpu: ${tests[*]}; $test_thrust; $example"
    echo "  sanitizer   compute-sanitizer, memcheck, racecheck and synccheck, of slots, rows and routing"
    echo "  bench       $gpu_bench"
    echo "  counters    ncu on its kernels"
    echo "  peers       bench/gpu_peers.py --no-compile"
    exit 77
fi
mkdir -p "$out"
: >"$out/log.txt"
echo "# switchyard on a GPU" >"$out/report.md"
say ""
if [ ! -x "$test_gpu" ] || [ ! -x "$gpu_bench" ]; then
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    within 60 cmake --preset release -B "$build" "-DCMAKE_CUDA_ARCHITECTURES=$architecture"
    within 420 cmake --build "$build" --target gpu_visit
fi
for part in $parts; do
    "$part"
done
exit $status
