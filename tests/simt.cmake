# The SIMT executor and the kernels that it runs. Each simt/*_test.cpp becomes one CTest test, simt/<stem>.
file(GLOB simt_files CONFIGURE_DEPENDS "simt/*_test.cpp")
if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    # What counts bytes runs the same kernels on more numbers, and other types of numbers are the same source again: minutes
    # under a sanitizer.
    list(FILTER simt_files EXCLUDE REGEX "_(traffic|storage)_test[.]cpp$")
endif()
add_executable(test_simt ${simt_files})
target_link_libraries(test_simt PRIVATE switchyard_doctest_main switchyard_own rapidcheck)
target_include_directories(test_simt PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
switchyard_compile_quickly(test_simt)
switchyard_add_file_tests(test_simt simt simt ${simt_files})

if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
    # Kernels that are wrong, each of which the sanitizer must report with the line of the kernel.
    set(wrongs shared_memory device_memory)
    set(report "heap-buffer-overflow.*wrong_kernels[.]hpp:[0-9]+")
    if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=[a-z,]*thread")
        set(wrongs missing_sync missing_sync_warp missing_fence missing_atomic)
        set(report "data race.*wrong_kernels[.]hpp:[0-9]+.*Previous.*wrong_kernels[.]hpp:[0-9]+")
    endif()
    add_executable(simt_wrong simt/wrong.cpp)
    target_link_libraries(simt_wrong PRIVATE switchyard_own)
    target_include_directories(simt_wrong PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
    foreach(wrong IN LISTS wrongs)
        add_test(NAME simt_wrong/${wrong} COMMAND simt_wrong ${wrong})
        set_tests_properties(simt_wrong/${wrong} PROPERTIES
            LABELS "simt;sanitizer"
            TIMEOUT 60
            PASS_REGULAR_EXPRESSION "${report}"
            ENVIRONMENT "${switchyard_test_environment}")
    endforeach()
else()
    # The switch of stacks that other processors have.
    add_executable(test_simt_ucontext simt/executor_test.cpp simt/mistakes_test.cpp)
    target_link_libraries(test_simt_ucontext PRIVATE switchyard_doctest_main switchyard_own)
    target_include_directories(test_simt_ucontext PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")
    target_compile_definitions(test_simt_ucontext PRIVATE SWITCHYARD_SIMT_UCONTEXT)
    switchyard_add_file_tests(test_simt_ucontext simt simt_ucontext simt/executor_test.cpp simt/mistakes_test.cpp)
endif()
