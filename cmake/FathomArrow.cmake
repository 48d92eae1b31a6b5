# Arrow's C++ library out of the pyarrow package, for parquet. Sets FATHOM_HAS_PARQUET and, when it is on,
# makes the target fathom_arrow.
set(FATHOM_PARQUET AUTO CACHE STRING "Read parquet: AUTO (where pyarrow is found), ON, OFF")
set(FATHOM_PYARROW "" CACHE PATH "Directory of the pyarrow package (default: of .venv, else of the interop Python)")
set(arrow_version 2600)  # pyarrow 26.0.x

set(candidates ${FATHOM_PYARROW})
if(NOT candidates)
  file(GLOB candidates ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/pyarrow
       ${CMAKE_SOURCE_DIR}/.venv-interop/lib/python3*/site-packages/pyarrow)
  if(FATHOM_INTEROP_PYTHON)
    cmake_path(GET FATHOM_INTEROP_PYTHON PARENT_PATH interop_bin)
    file(GLOB interop_candidates ${interop_bin}/../lib/python3*/site-packages/pyarrow)
    list(APPEND candidates ${interop_candidates})
  endif()
endif()

set(FATHOM_HAS_PARQUET OFF)
if(NOT FATHOM_PARQUET STREQUAL OFF)
  foreach(candidate ${candidates})
    if(EXISTS ${candidate}/libparquet.so.${arrow_version} AND EXISTS ${candidate}/libarrow.so.${arrow_version})
      set(FATHOM_HAS_PARQUET ON)
      cmake_path(NORMAL_PATH candidate OUTPUT_VARIABLE arrow_directory)
      add_library(fathom_arrow INTERFACE)
      target_include_directories(fathom_arrow SYSTEM INTERFACE ${arrow_directory}/include)
      target_link_options(fathom_arrow INTERFACE -L${arrow_directory})
      list(APPEND CMAKE_BUILD_RPATH ${arrow_directory})  # an installed program brings them
      target_link_libraries(fathom_arrow INTERFACE -l:libparquet.so.${arrow_version} -l:libarrow.so.${arrow_version})
      message(STATUS "Parquet: through ${arrow_directory}")
      break()
    endif()
  endforeach()
  if(NOT FATHOM_HAS_PARQUET)
    if(FATHOM_PARQUET STREQUAL ON)
      message(FATAL_ERROR "FATHOM_PARQUET is ON and there is no pyarrow 26.0.x; `make setup` installs it, or name its directory with -DFATHOM_PYARROW=")
    endif()
    message(STATUS "Parquet files will be refused: there is no pyarrow 26.0.x (`make setup` installs it)")
  endif()
endif()
