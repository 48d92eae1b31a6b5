# Whether and how kernels for CUDA devices are built. Sets FATHOM_WITH_CUDA to 1 or 0.
#
# AUTO takes the toolkit when nvcc is found (not under sanitizers of the host), ON demands it, OFF
# leaves it out. Programs link the
# static CUDA runtime, so one that was built with CUDA starts on machines without a driver too.

set(FATHOM_WITH_CUDA 0)
if(NOT FATHOM_CUDA STREQUAL OFF AND NOT (FATHOM_SANITIZE AND FATHOM_CUDA STREQUAL AUTO))
  find_program(FATHOM_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  if(FATHOM_NVCC)
    set(FATHOM_WITH_CUDA 1)
  elseif(FATHOM_CUDA STREQUAL ON)
    message(FATAL_ERROR "FATHOM_CUDA=ON, but no nvcc was found: put it on the PATH or set CUDA_HOME, "
                        "or use FATHOM_CUDA=OFF")
  endif()
endif()
if(FATHOM_WITH_CUDA)
  set(CMAKE_CUDA_COMPILER ${FATHOM_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  # Older versions of CMake do not know that nvcc takes C++20.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "CUDA kernels: ${FATHOM_NVCC}, for compute capabilities ${FATHOM_CUDA_ARCHS}")
else()
  message(STATUS "CUDA kernels: left out (FATHOM_CUDA=${FATHOM_CUDA})")
endif()

# fathom_cuda_objects(NAME n SOURCES a.cu ARCHS 90a 100a)
# makes the object library n. Contraction is off here as on the CPU: a fused multiply-add happens
# where the source says so.
function(fathom_cuda_objects)
  cmake_parse_arguments(ARG "" "NAME" "SOURCES;ARCHS" ${ARGN})
  add_library(${ARG_NAME} OBJECT ${ARG_SOURCES})
  target_link_libraries(${ARG_NAME} PRIVATE fathom_flags CUDA::cudart_static)
  target_compile_options(${ARG_NAME} PRIVATE -fmad=false -lineinfo -Xcompiler=-ffp-contract=off
                         -Xcudafe=--display_error_number -diag-suppress=20012,20013,20014,20015)
  foreach(arch IN LISTS ARG_ARCHS)
    target_compile_options(${ARG_NAME} PRIVATE
                           "SHELL:-gencode=arch=compute_${arch},code=sm_${arch}")
  endforeach()
endfunction()
