# Every script in bench/ and docs/ runs in a small form, so that none rots: label script. Included by tests/CMakeLists.txt, after
# it has looked for a Python with NumPy. What these tests look at is that the scripts work; timings are not judged.

# switchyard_script_test(<name> <seconds> <command>...)
function(switchyard_script_test name seconds)
    add_test(NAME "script/${name}" COMMAND ${ARGN})
    set_tests_properties("script/${name}" PROPERTIES LABELS script TIMEOUT ${seconds} SKIP_RETURN_CODE 77)
endfunction()

# Those that other tests or stages of CI run.
set(tested_scripts
    bench/compile_time.py  # stage compile_time of .ci/run
    bench/gpu_visit.sh)    # gpu/visit, where nvcc is

# Peers that are not installed are left out with a notice.
switchyard_script_test(peers 300 "${SWITCHYARD_NUMPY_PYTHON}" "${PROJECT_SOURCE_DIR}/bench/peers.py"
    --bench $<TARGET_FILE:routing_bench> --assignment-bench $<TARGET_FILE:assignment_bench>
    --program $<TARGET_FILE:route_scores> --tokens 4096 --experts 64 --assign-tokens 128 --repeat 1)
set_tests_properties(script/peers PROPERTIES FAIL_REGULAR_EXPRESSION "notice: no numpy;notice: no routing_bench")

# Skipped without PyTorch and a GPU; beside the times of an earlier run, for speed.
switchyard_script_test(gpu_peers 600 "${SWITCHYARD_NUMPY_PYTHON}" "${PROJECT_SOURCE_DIR}/bench/gpu_peers.py"
    --rows "${PROJECT_SOURCE_DIR}/docs/gpu_h100.md" --no-compile)

switchyard_script_test(bars 60 "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/scripts/check_bars.py"
    "${PROJECT_SOURCE_DIR}/bench/bars.py" $<TARGET_FILE:routing_bench> $<TARGET_FILE:formats_bench>
    $<TARGET_FILE:models_bench>)

get_target_property(eigen_folder Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
list(GET eigen_folder 0 eigen_folder)
switchyard_script_test(flags 600 "${Python3_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/bench/flags.py"
    --flags=-O0 --rows "^top_k_route_seq/1/256/8(/|$)" --rounds 1 --compiler "${CMAKE_CXX_COMPILER}" --eigen "${eigen_folder}")
set_tests_properties(script/flags PROPERTIES PASS_REGULAR_EXPRESSION "top_k_route_seq/1/256/8` .* ms .*")

switchyard_script_test(draw_prices 60 "${SWITCHYARD_NUMPY_PYTHON}" "${PROJECT_SOURCE_DIR}/docs/assignment/draw_prices.py"
    $<TARGET_FILE:assignment_report> "${CMAKE_CURRENT_BINARY_DIR}/prices.svg")
set_tests_properties(script/draw_prices PROPERTIES SKIP_REGULAR_EXPRESSION "No module named 'matplotlib'")

list(APPEND tested_scripts bench/peers.py bench/gpu_peers.py bench/bars.py bench/flags.py docs/assignment/draw_prices.py)
file(GLOB_RECURSE scripts CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/bench/*.py"
    "${PROJECT_SOURCE_DIR}/bench/*.sh" "${PROJECT_SOURCE_DIR}/docs/*.py" "${PROJECT_SOURCE_DIR}/docs/*.sh")
list(FILTER scripts EXCLUDE REGEX "^bench/peer_forms/")
list(REMOVE_ITEM scripts ${tested_scripts})
if(scripts)
    message(FATAL_ERROR "no test runs ${scripts}: add one to tests/scripts.cmake")
endif()
