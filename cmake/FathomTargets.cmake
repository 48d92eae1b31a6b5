# Functions that every folder uses to declare its target.

add_library(fathom_flags INTERFACE)
target_include_directories(fathom_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)
# x86-64-v3 (AVX2 and FMA) is the floor. Contraction is off everywhere: a fused multiply-add happens
# where the source says so and nowhere else, so bits do not depend on the optimiser.
target_compile_options(fathom_flags INTERFACE
                       "$<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v3;-ffp-contract=off;-fno-math-errno>"
                       "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion>"
                       "$<$<COMPILE_LANGUAGE:CXX>:-Wno-sign-conversion;-Wno-missing-field-initializers>")
target_compile_definitions(fathom_flags INTERFACE FATHOM_WITH_CUDA=${FATHOM_WITH_CUDA})
if(FATHOM_WERROR)
  target_compile_options(fathom_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(FATHOM_SANITIZE)
  # Instrumented code makes GCC see uninitialised members in Boost's headers that are none.
  set(flags -fsanitize=${FATHOM_SANITIZE} -fno-omit-frame-pointer -Wno-maybe-uninitialized)
  target_compile_options(fathom_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
  target_link_options(fathom_flags INTERFACE -fsanitize=${FATHOM_SANITIZE})
endif()

# fathom_add_library(NAME base SOURCES a.cc b.cc DEPS fathom_x lib::y)
# makes the static library fathom_<NAME>.
function(fathom_add_library)
  cmake_parse_arguments(ARG "" "NAME" "SOURCES;DEPS" ${ARGN})
  add_library(fathom_${ARG_NAME} STATIC ${ARG_SOURCES})
  target_link_libraries(fathom_${ARG_NAME} PUBLIC fathom_flags ${ARG_DEPS})
endfunction()

# fathom_add_test(NAME router_test SOURCES router_test.cc DEPS fathom_kernels [LABELS gpu] [TIMEOUT s])
function(fathom_add_test)
  if(NOT FATHOM_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SOURCES})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} fathom_flags GTest::gtest GTest::gtest_main)
  target_compile_definitions(${ARG_NAME} PRIVATE FATHOM_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                             FATHOM_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# fathom_add_gpu_test(NAME model_bits_gpu_test SOURCES model_bits_test.cc DEPS fathom_train)
# adds a test of the model that runs on a CUDA device (label gpu), where the build has CUDA.
function(fathom_add_gpu_test)
  cmake_parse_arguments(ARG "" "NAME" "SOURCES;DEPS" ${ARGN})
  if(NOT FATHOM_WITH_CUDA OR NOT FATHOM_TESTS)
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SOURCES} ${CMAKE_SOURCE_DIR}/tests/gpu_main.cc)
  target_include_directories(${ARG_NAME} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} fathom_flags GTest::gtest)
  target_compile_definitions(${ARG_NAME} PRIVATE FATHOM_TEST_CUDA=1
                             FATHOM_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                             FATHOM_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT 600 LABELS gpu SKIP_RETURN_CODE 77)
endfunction()

# fathom_add_kernel_test(NAME router_test DEPS fathom_kernel_router)
# adds the test <NAME>.cc and, with CUDA, the same test on a device (label gpu).
function(fathom_add_kernel_test)
  cmake_parse_arguments(ARG "" "NAME" "DEPS" ${ARGN})
  fathom_add_test(NAME ${ARG_NAME} SOURCES ${ARG_NAME}.cc DEPS ${ARG_DEPS})
  if(NOT FATHOM_WITH_CUDA OR NOT FATHOM_TESTS)
    return()
  endif()
  string(REGEX REPLACE "_test$" "_gpu_test" gpu_name ${ARG_NAME})
  add_executable(${gpu_name} ${ARG_NAME}.cc ${CMAKE_SOURCE_DIR}/src/fathom/kernels/gpu_test_main.cc)
  target_link_libraries(${gpu_name} PRIVATE ${ARG_DEPS} fathom_flags GTest::gtest)
  target_compile_definitions(${gpu_name} PRIVATE FATHOM_TEST_CUDA=1)
  add_test(NAME ${gpu_name} COMMAND ${gpu_name})
  set_tests_properties(${gpu_name} PROPERTIES TIMEOUT 300 LABELS gpu SKIP_RETURN_CODE 77)
endfunction()

# fathom_add_kernel(NAME router [EXTRA router_plan.cc] [CUDA more.cu] [DEPS fathom_kernel_linear])
# makes fathom_kernel_<NAME> from the fixed file names of a kernel folder: <n>.cc (checks, dispatch),
# <n>_ref.cc (fp64 reference) and <n>_cpu.cc, which is compiled twice: once for AVX2 into namespace
# fathom::avx2 and once for AVX-512 into fathom::avx512 (numerics/simd.h). With CUDA, <n>_cuda.cu for
# all of FATHOM_CUDA_ARCHS (the fast kernels, *_sm90.cu, are kernels/sm90's). Adds <n>_test and <n>_bench.
function(fathom_add_kernel)
  cmake_parse_arguments(ARG "" "NAME" "EXTRA;CUDA;DEPS" ${ARGN})
  set(n ${ARG_NAME})
  set(objects)
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${n}_cpu.cc)
    foreach(isa avx2 avx512)
      add_library(fathom_kernel_${n}_${isa} OBJECT ${n}_cpu.cc)
      target_link_libraries(fathom_kernel_${n}_${isa} PRIVATE fathom_flags)
      if(isa STREQUAL avx512)
        # GCC's own AVX-512 headers start from undefined registers and trip these two warnings; the
        # AVX2 build of the same source still has them on.
        target_compile_options(fathom_kernel_${n}_${isa} PRIVATE -mavx512f -mavx512dq -mavx512bw
                               -mavx512vl -mprefer-vector-width=512 -Wno-uninitialized
                               -Wno-maybe-uninitialized)
      endif()
      # Under sanitizers -O3 makes one file compile for minutes.
      if(NOT FATHOM_SANITIZE)
        target_compile_options(fathom_kernel_${n}_${isa} PRIVATE -O3)
      endif()
      list(APPEND objects $<TARGET_OBJECTS:fathom_kernel_${n}_${isa}>)
    endforeach()
  endif()
  if(FATHOM_WITH_CUDA)
    if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${n}_cuda.cu)
      fathom_cuda_objects(NAME fathom_kernel_${n}_cuda SOURCES ${n}_cuda.cu ${ARG_CUDA}
                          ARCHS ${FATHOM_CUDA_ARCHS})
      list(APPEND objects $<TARGET_OBJECTS:fathom_kernel_${n}_cuda>)
    endif()
  endif()
  add_library(fathom_kernel_${n} STATIC ${n}.cc ${n}_ref.cc ${ARG_EXTRA} ${objects})
  target_link_libraries(fathom_kernel_${n} PUBLIC fathom_flags fathom_numerics ${ARG_DEPS})
  fathom_add_kernel_test(NAME ${n}_test DEPS fathom_kernel_${n})
  if(FATHOM_BENCH AND EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${n}_bench.cc)
    add_executable(${n}_bench ${n}_bench.cc)
    target_link_libraries(${n}_bench PRIVATE fathom_kernel_${n} benchmark::benchmark benchmark::benchmark_main)
  endif()
endfunction()
