# The Thrust backend. Each thrust/*.cpp is built by the plain host compiler once a system that Thrust has for CPUs and becomes
# one CTest test each, thrust_<system>/<stem>. On TBB's, the operations and their determinism alone.
file(GLOB thrust_files CONFIGURE_DEPENDS "thrust/*.cpp")
set(thrust_tbb_files ${thrust_files})
list(FILTER thrust_tbb_files INCLUDE REGEX "/(routing|slots|plans|rows|auction|determinism)_test[.]cpp$")

add_custom_target(thrust_tests)

# switchyard_add_thrust_tests(<system> <files>...)
function(switchyard_add_thrust_tests system)
    if(NOT ARGN)
        return()
    endif()
    string(TOUPPER "${system}" SYSTEM)
    add_executable(test_thrust_${system} ${ARGN})
    target_link_libraries(test_thrust_${system} PRIVATE
        switchyard_doctest_main switchyard_own switchyard::thrust rapidcheck)
    target_include_directories(test_thrust_${system} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
    switchyard_compile_quickly(test_thrust_${system})
    target_compile_definitions(test_thrust_${system} PRIVATE
        THRUST_HOST_SYSTEM=THRUST_HOST_SYSTEM_CPP
        THRUST_DEVICE_SYSTEM=THRUST_DEVICE_SYSTEM_${SYSTEM})
    if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=[a-z,]*undefined")
        # Thrust reads its own stateless policies through null references, in 1.17 and in 3.0.
        target_compile_options(test_thrust_${system} PRIVATE -fno-sanitize=null)
    endif()
    add_dependencies(thrust_tests test_thrust_${system})
    switchyard_add_file_tests(test_thrust_${system} thrust thrust_${system} ${ARGN})
endfunction()

# Which systems: each takes minutes to compile. Under AddressSanitizer one is enough, since they share their memory;
# under ThreadSanitizer only OpenMP has threads: TBB's library hands its tasks from thread to thread in code that the
# sanitizer does not see, and each would be a false race.
set(systems cpp omp tbb)
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=[a-z,]*thread")
    set(systems omp)
elseif(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    set(systems cpp)
endif()
set(SWITCHYARD_THRUST_SYSTEMS "${systems}" CACHE STRING "Systems of Thrust that are tested: cpp, omp, tbb")
mark_as_advanced(SWITCHYARD_THRUST_SYSTEMS)
if("cpp" IN_LIST SWITCHYARD_THRUST_SYSTEMS)
    switchyard_add_thrust_tests(cpp ${thrust_files})
endif()
if("omp" IN_LIST SWITCHYARD_THRUST_SYSTEMS AND TARGET switchyard::openmp)
    switchyard_add_thrust_tests(omp ${thrust_files})
endif()
find_package(TBB QUIET)
if("tbb" IN_LIST SWITCHYARD_THRUST_SYSTEMS AND TARGET TBB::tbb)
    switchyard_add_thrust_tests(tbb ${thrust_tbb_files})
    target_link_libraries(test_thrust_tbb PRIVATE TBB::tbb)
endif()
