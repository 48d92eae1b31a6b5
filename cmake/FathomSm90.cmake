# The fast kernels for Hopper (compute capability 9.0a), where nvcc is found. They are compiled by
# nvcc itself, apart from the project's C++ settings: wgmma needs exactly this target, and a build
# without nvcc leaves them out.
find_program(FATHOM_SM90_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)

# fathom_sm90_objects(<out_var> SOURCES a.cu b.cu)
# sets <out_var> to object files made from the sources (paths from the project's root). Contraction is
# off: a fused multiply-add happens where the source says so.
function(fathom_sm90_objects out_var)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  set(objects)
  foreach(source IN LISTS ARG_SOURCES)
    string(REPLACE "/" "_" stem ${source})
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${stem}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${FATHOM_SM90_NVCC} -std=c++20 -O3 -DNDEBUG -fmad=false
              -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr
              -I${CMAKE_SOURCE_DIR}/src -MD -MF ${object}.d -MT ${object}
              -c ${CMAKE_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${CMAKE_SOURCE_DIR}/${source}
      DEPFILE ${object}.d
      COMMENT "Compiling ${source} for sm_90a"
      VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set(${out_var} ${objects} PARENT_SCOPE)
endfunction()
