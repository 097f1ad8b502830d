# Finds Eigen 3.4 or newer, for the source tree and, installed, for find_package(switchyard): Eigen3::Eigen is there
# afterwards, or switchyard_eigen_problem says why not.
#
# No version stands in the call, because each major version's package refuses what others accept: Eigen 5 a wish for 3.4,
# and Eigen 3.4 a range that ends at 5. So the Eigen that CMake finds first is the one, and it is looked at here.
set(switchyard_eigen_problem "")
if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 QUIET NO_MODULE GLOBAL)
    if(NOT TARGET Eigen3::Eigen)
        set(switchyard_eigen_problem "switchyard::switchyard needs Eigen 3.4 or newer, and CMake finds none: install it \
(Debian: libeigen3-dev) or name its package's folder in Eigen3_DIR.")
    endif()
endif()
# Also where the project has found it before, or has been refused before.
if(TARGET Eigen3::Eigen AND Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS 3.4)
    set(switchyard_eigen_problem "switchyard::switchyard needs Eigen 3.4 or newer, and the one that CMake finds first, \
in ${Eigen3_DIR}, is ${Eigen3_VERSION}: name the folder of a newer one's package in Eigen3_DIR.")
endif()
