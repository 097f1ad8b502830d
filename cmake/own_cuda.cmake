# switchyard_own_cuda: how switchyard's own .cu files are compiled, where nvcc is found; the variable SWITCHYARD_HAS_NVCC
# says whether it was. Compiling needs no GPU.
set(SWITCHYARD_HAS_NVCC FALSE)
if(SWITCHYARD_CUDA STREQUAL "OFF")
    return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    if(SWITCHYARD_CUDA STREQUAL "AUTO")
        message(STATUS "No nvcc found: switchyard's CUDA sources are not compiled")
        return()
    endif()
    message(FATAL_ERROR "SWITCHYARD_CUDA is ${SWITCHYARD_CUDA}, but no CUDA compiler is found")
endif()
# Without a wish for other devices everything is compiled for sm_80, and files given these options for sm_90 and sm_120, too:
# ptxas translates the same intermediate code once more for each.
set(switchyard_more_architectures "")
set(switchyard_only_compiled FALSE)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80)
    set(switchyard_more_architectures "--generate-code=arch=compute_80,code=[sm_90,sm_120]")
    # Neither a wish for a device nor a device (the second is its name in WSL): what is built here is not run.
    if(NOT EXISTS /dev/nvidiactl AND NOT EXISTS /dev/dxg AND NOT DEFINED ENV{CUDAARCHS})
        set(switchyard_only_compiled TRUE)
    endif()
endif()
enable_language(CUDA)
set(SWITCHYARD_HAS_NVCC TRUE)

# CMake before 3.30 does not know how to ask nvcc 13 for C++20, hence the plain flag. -Wpedantic is not for nvcc, whose
# own intermediate code it would warn about. A host function called from a device one is only a warning for nvcc.
add_library(switchyard_own_cuda INTERFACE)
target_link_libraries(switchyard_own_cuda INTERFACE switchyard::cuda)
set(switchyard_cuda_flags -std=c++20 --extended-lambda --expt-relaxed-constexpr "SHELL:-Xcompiler -Wall,-Wextra")
if(SWITCHYARD_WERROR)
    list(APPEND switchyard_cuda_flags -Werror=all-warnings "SHELL:-Xcompiler -Werror")
endif()
# What is not run has to compile without a warning, and nvcc takes half the time where it optimises little. What
# tests/cuda/resources/kernels.cu uses, nearly every kernel, is compiled as users get it.
if(switchyard_only_compiled AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    message(STATUS "No GPU here, and none named by CMAKE_CUDA_ARCHITECTURES: CUDA programs are compiled without optimisation")
    string(REPLACE "-O3" "-O0" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")
    list(APPEND switchyard_cuda_flags --Ofast-compile=max)
    target_compile_definitions(switchyard_own_cuda INTERFACE SWITCHYARD_ONLY_COMPILED)
endif()
target_compile_options(switchyard_own_cuda INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:${switchyard_cuda_flags}>")
