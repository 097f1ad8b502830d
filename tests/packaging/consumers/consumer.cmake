# consumer(<name> <source> <target>): an executable that links one target of switchyard and sets nothing else, and
# <name>.flags, what that target makes it compile and link with.
function(consumer name source target)
    add_executable(${name} "${source}")
    target_link_libraries(${name} PRIVATE ${target})
    set(lines "")
    foreach(property IN ITEMS COMPILE_OPTIONS COMPILE_DEFINITIONS LINK_OPTIONS COMPILE_FEATURES)
        string(APPEND lines "${property}=$<TARGET_PROPERTY:${name},${property}>\n")
    endforeach()
    file(GENERATE OUTPUT "${CMAKE_BINARY_DIR}/${name}.flags" CONTENT "${lines}" TARGET ${name})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
endfunction()

# A project that includes switchyard builds none of its tests, benchmarks and examples and installs nothing of it.
function(expect_nothing_else)
    foreach(target IN ITEMS switchyard_own switchyard_doctest_main test_core)
        if(TARGET ${target})
            message(FATAL_ERROR "switchyard brings its own target ${target} into a project that includes it")
        endif()
    endforeach()
    if(SWITCHYARD_BUILD_TESTS OR SWITCHYARD_BUILD_BENCHMARKS OR SWITCHYARD_BUILD_EXAMPLES OR SWITCHYARD_INSTALL)
        message(FATAL_ERROR "switchyard builds or installs more than its library in a project that includes it")
    endif()
endfunction()
