# The optional parts of switchyard. Read by the source tree and, installed, by find_package(switchyard): whatever is found
# becomes a target, and nothing is ever demanded here.
#
#   switchyard::openmp   the library with OpenMP on (the policy switchyard::par needs it)
#   switchyard::thrust   with Thrust's headers, from a CUDA toolkit or from libthrust-dev; Thrust's host and device
#                        systems (THRUST_HOST_SYSTEM, THRUST_DEVICE_SYSTEM) remain the user's choice
#   switchyard::cuda     with the CUDA runtime and, where found, Thrust, for .cu sources
#
# They are targets of their own because each brings compile flags or include paths along, and the main target must not.
# "The library" brings Eigen where switchyard::switchyard is, and is switchyard::without_eigen otherwise. A project may ask
# for the package without Eigen first and with it afterwards, so all of this may be read again. Eigen3::Eigen itself is
# linked, which is visible in every directory: switchyard::switchyard is in the one that asked for it.
if(NOT TARGET OpenMP::OpenMP_CXX)
    find_package(OpenMP QUIET COMPONENTS CXX GLOBAL)
endif()
if(TARGET OpenMP::OpenMP_CXX AND NOT TARGET switchyard::openmp)
    add_library(switchyard::openmp INTERFACE IMPORTED GLOBAL)
    target_link_libraries(switchyard::openmp INTERFACE switchyard::without_eigen OpenMP::OpenMP_CXX)
endif()

if(NOT TARGET CUDA::cudart)
    find_package(CUDAToolkit QUIET GLOBAL)
endif()

# A toolkit's Thrust (in cccl/ from CUDA 13 on) is newer than Debian's, so it is looked for first.
find_path(SWITCHYARD_THRUST_INCLUDE_DIR thrust/version.h
    HINTS ${CUDAToolkit_INCLUDE_DIRS}
    PATH_SUFFIXES cccl
    DOC "The folder that holds thrust/version.h")
mark_as_advanced(SWITCHYARD_THRUST_INCLUDE_DIR)
if(SWITCHYARD_THRUST_INCLUDE_DIR AND NOT TARGET switchyard::thrust)
    add_library(switchyard::thrust INTERFACE IMPORTED GLOBAL)
    target_link_libraries(switchyard::thrust INTERFACE switchyard::without_eigen)
    target_include_directories(switchyard::thrust SYSTEM INTERFACE "${SWITCHYARD_THRUST_INCLUDE_DIR}")
endif()

if(TARGET CUDA::cudart AND NOT TARGET switchyard::cuda)
    add_library(switchyard::cuda INTERFACE IMPORTED GLOBAL)
    target_link_libraries(switchyard::cuda INTERFACE switchyard::without_eigen CUDA::cudart)
    if(TARGET switchyard::thrust)
        target_link_libraries(switchyard::cuda INTERFACE switchyard::thrust)
    endif()
endif()

if(TARGET switchyard::switchyard)
    foreach(switchyard_component IN ITEMS openmp thrust cuda)
        if(TARGET switchyard::${switchyard_component})
            set_property(TARGET switchyard::${switchyard_component} APPEND PROPERTY
                INTERFACE_LINK_LIBRARIES Eigen3::Eigen)
        endif()
    endforeach()
endif()
