# Kernels and the policy of CUDA. The tests of device policies, written for Thrust's systems, also run
#   on the SIMT executor, simt_device/<order>/<stem>: there the kernels run that a CUDA policy launches, in every order of
#     threads and blocks;
#   on a GPU, gpu/<stem>, compiled by nvcc where there is one: skipped with the reason where there is no device.
set(device_tests routing more_routers slots plans formats losses rows auction)
set(orders forward reverse random random2 greedy greedy_last)
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    # simt/*_test.cpp run the same kernels under sanitizers, in all orders and on sizes that suit them.
    return()
endif()
set(device_files ${device_tests})
list(TRANSFORM device_files REPLACE "(.+)" "thrust/\\1_test.cpp")

add_executable(test_simt_device ${device_files})
target_link_libraries(test_simt_device PRIVATE switchyard_doctest_main switchyard_own rapidcheck)
target_include_directories(test_simt_device PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
switchyard_compile_quickly(test_simt_device)
target_compile_definitions(test_simt_device PRIVATE SWITCHYARD_TEST_DEVICE="simt/device.hpp")
foreach(test IN LISTS device_tests)
    foreach(order IN LISTS orders)
        if(test STREQUAL "auction" AND NOT order STREQUAL "greedy")
            continue()  # half a minute each; simt/auction_test.cpp has its kernels in every order
        endif()
        add_test(NAME "simt_device/${order}/${test}" COMMAND test_simt_device "--source-file=*/${test}_test.cpp")
        switchyard_environment_of(environment "simt_device/${order}/${test}")
        set_tests_properties("simt_device/${order}/${test}" PROPERTIES
            LABELS simt
            TIMEOUT 600
            FAIL_REGULAR_EXPRESSION "test cases: +0 "
            ENVIRONMENT "${environment};SWITCHYARD_SIMT_ORDER=${order}")
    endforeach()
endforeach()

if(NOT SWITCHYARD_HAS_NVCC)
    return()
endif()
# The tests' host side, at -O1; ptxas optimises kernels all the same.
string(REPLACE "-O3" "-O1" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")

# That every file compiles without a warning; and, where there is a GPU, that it decides there as on a CPU.
file(GLOB thrust_cuda_files CONFIGURE_DEPENDS "thrust/*.cu")
add_executable(test_thrust_cuda ${thrust_cuda_files})
target_link_libraries(test_thrust_cuda PRIVATE switchyard_own_cuda)
add_test(NAME nvcc/compiles COMMAND "${CMAKE_COMMAND}" --build "${PROJECT_BINARY_DIR}" --target test_thrust_cuda test_gpu)
set_tests_properties(nvcc/compiles PROPERTIES LABELS nvcc TIMEOUT 1200 FIXTURES_SETUP switchyard_nvcc)
add_test(NAME nvcc/runs COMMAND test_thrust_cuda)
set_tests_properties(nvcc/runs PROPERTIES LABELS "nvcc;gpu" TIMEOUT 600 FIXTURES_REQUIRED switchyard_nvcc SKIP_RETURN_CODE 77)

# Every header of CUDA compiles alone.
file(GLOB_RECURSE cuda_headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/include"
    "${PROJECT_SOURCE_DIR}/include/switchyard/cuda*.hpp" "${PROJECT_SOURCE_DIR}/include/switchyard/backend/cuda*.hpp")
list(REMOVE_DUPLICATES cuda_headers)
foreach(header IN LISTS cuda_headers)
    string(REGEX REPLACE "^switchyard/|[.]hpp$" "" stem "${header}")
    set(alone "${CMAKE_CURRENT_BINARY_DIR}/cuda_headers/${stem}.cu")
    file(CONFIGURE OUTPUT "${alone}" CONTENT "#include <${header}>\n" @ONLY)
    add_test(NAME "nvcc/header/${stem}" COMMAND "${CMAKE_CUDA_COMPILER}" -std=c++20 --extended-lambda --expt-relaxed-constexpr
        -Werror all-warnings "-I${PROJECT_SOURCE_DIR}/include" -arch=sm_80 -c "${alone}" -o /dev/null)
    set_tests_properties("nvcc/header/${stem}" PROPERTIES LABELS nvcc TIMEOUT 300)
endforeach()

foreach(test IN LISTS device_tests)
    set(wrapper "${CMAKE_CURRENT_BINARY_DIR}/gpu/${test}.cu")
    file(CONFIGURE OUTPUT "${wrapper}" CONTENT "#include \"thrust/${test}_test.cpp\"\n" @ONLY)
    list(APPEND gpu_files "${wrapper}")
endforeach()
file(GLOB cuda_files CONFIGURE_DEPENDS "cuda/*.cu")
add_executable(test_gpu ${gpu_files} ${cuda_files})
target_link_libraries(test_gpu PRIVATE switchyard_own_cuda doctest::doctest rapidcheck)
target_include_directories(test_gpu PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
target_compile_definitions(test_gpu PRIVATE SWITCHYARD_TEST_DEVICE="cuda/device.hpp")
# g++ 12 warns of CUB's variables at -O1.
foreach(target IN ITEMS test_gpu test_thrust_cuda)
    target_compile_options(${target} PRIVATE "SHELL:-Xcompiler -Wno-maybe-uninitialized")
endforeach()
foreach(file IN LISTS device_files cuda_files)
    cmake_path(GET file FILENAME name)
    cmake_path(GET file STEM stem)
    string(REGEX REPLACE "_test$" "" stem "${stem}")
    if(stem STREQUAL "main")
        continue()
    endif()
    add_test(NAME "gpu/${stem}" COMMAND test_gpu "--source-file=*/${name}")
    switchyard_environment_of(environment "gpu/${stem}")
    set_tests_properties("gpu/${stem}" PROPERTIES
        LABELS gpu
        TIMEOUT 600
        SKIP_RETURN_CODE 77
        FIXTURES_REQUIRED switchyard_nvcc
        FAIL_REGULAR_EXPRESSION "test cases: +0 "
        ENVIRONMENT "${environment}")
endforeach()

# What resources/kernels.cu is not compiled for, on all three: 16-bit and double numbers, and Thrust.
set_source_files_properties(cuda/storage_test.cu ${thrust_cuda_files} PROPERTIES
    COMPILE_OPTIONS "${switchyard_more_architectures}")

# What ptxas allots to every kernel: no spills, no local memory, and the table of docs/gpu_resources.md up to date.
if(Python3_EXECUTABLE)
    set(resources_script "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/cuda/resources/resources.py")
    set(resources --nvcc "${CMAKE_CUDA_COMPILER}" --table "${PROJECT_SOURCE_DIR}/docs/gpu_resources.md"
        "${CMAKE_CURRENT_SOURCE_DIR}/cuda/resources/kernels.cu")
    set(resources_flags -std=c++20 --extended-lambda --expt-relaxed-constexpr -Werror all-warnings
        "-I${PROJECT_SOURCE_DIR}/include")
    add_test(NAME nvcc/resources COMMAND ${resources_script} ${resources} -- ${resources_flags})
    set_tests_properties(nvcc/resources PROPERTIES LABELS nvcc TIMEOUT 1200)
    add_custom_target(gpu_resources COMMAND ${resources_script} --write ${resources} -- ${resources_flags} VERBATIM)
endif()
