# Where nvcc lies: CMAKE_CUDA_COMPILER, CUDACXX, the path, or the wheels nvidia-cuda-nvcc and nvidia-cuda-cccl of the
# Python that builds (DRUPE_NVCC=pip: these alone). Refuses one that is too old, or that lacks a wanted architecture.
set(DRUPE_NVCC_WANTED "drupe needs nvcc 12.4 or newer: put one on the path, set CUDACXX, or build with DRUPE_NVCC=pip")

# Of CUDA 13 or newer: the wheels of CUDA 12 hold no nvcc.
function(drupe_find_nvcc_in_wheels)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nvidia; print(*nvidia.__path__, sep=';')"
    OUTPUT_VARIABLE roots OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  list(TRANSFORM roots APPEND "/cu*/bin/nvcc")
  file(GLOB found ${roots})
  if(NOT found)
    message(FATAL_ERROR "no nvcc found, nor the wheels nvidia-cuda-nvcc and nvidia-cuda-cccl (13.0 or newer) beside "
      "${Python_EXECUTABLE}. ${DRUPE_NVCC_WANTED}")
  endif()
  list(GET found -1 nvcc)
  cmake_path(GET nvcc PARENT_PATH root)
  cmake_path(GET root PARENT_PATH root)
  # Left to itself, pip pairs an older nvcc with the newest nvvm, whose PTX that nvcc's ptxas does not read.
  set(parts nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-runtime nvidia-nvvm)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import sys, importlib.metadata as m; [print(p, m.version(p)) for p in sys.argv[1:]]"
            ${parts} nvidia-cuda-cccl
    OUTPUT_VARIABLE versions ERROR_VARIABLE missing)
  if(missing MATCHES "PackageNotFoundError: [^\n]* ([a-z-]+)")
    message(FATAL_ERROR "${root} is not whole: pip install ${CMAKE_MATCH_1}")
  endif()
  string(REGEX MATCHALL "(nvcc|crt|runtime|nvvm) [0-9]+[.][0-9]+" releases "${versions}")
  list(TRANSFORM releases REPLACE ".* " "")
  list(REMOVE_DUPLICATES releases)
  list(LENGTH releases count)
  if(count GREATER 1)
    list(GET releases 0 release)
    list(JOIN parts "==${release}.* " text)
    message(FATAL_ERROR "wheels of different releases:\n${versions}pip install ${text}==${release}.*")
  endif()
  # nvcc links with what is in lib64, FindCUDAToolkit asks for a libcudart.so; the wheels have neither.
  set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${root}/lib")
  set(CUDA_CUDART ${root}/lib/libcudart_static.a CACHE FILEPATH "")
  set(CUDAToolkit_ROOT ${root} PARENT_SCOPE)
  set(CMAKE_CUDA_COMPILER ${nvcc} PARENT_SCOPE)
endfunction()

if(NOT CMAKE_CUDA_COMPILER)
  if(DRUPE_NVCC STREQUAL "pip" OR NOT (DRUPE_NVCC OR DEFINED ENV{CUDACXX}))
    drupe_find_nvcc_in_wheels()
  elseif(DEFINED ENV{CUDACXX})
    set(CMAKE_CUDA_COMPILER $ENV{CUDACXX})
  else()
    set(CMAKE_CUDA_COMPILER ${DRUPE_NVCC})
  endif()
endif()

execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE text ERROR_QUIET)
if(NOT text MATCHES "release [0-9.]+, V([0-9.]+)")
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} does not run, or is no nvcc. ${DRUPE_NVCC_WANTED}")
endif()
set(DRUPE_NVCC_VERSION ${CMAKE_MATCH_1})
if(DRUPE_NVCC_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "${CMAKE_CUDA_COMPILER} is nvcc ${DRUPE_NVCC_VERSION}. ${DRUPE_NVCC_WANTED}")
endif()

# 90a compiles where 90 does.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE text)
string(REGEX MATCHALL "[0-9]+" known "${text}")
list(FILTER known EXCLUDE REGEX "^[1-7].$")
message(STATUS "drupe: nvcc ${DRUPE_NVCC_VERSION} at ${CMAKE_CUDA_COMPILER}")
foreach(arch IN LISTS DRUPE_CUDA_ARCHS)
  string(REGEX REPLACE "[af]$" "" number "${arch}")
  if(NOT number IN_LIST known)
    message(FATAL_ERROR "DRUPE_CUDA_ARCHS=${DRUPE_CUDA_ARCHS}: nvcc ${DRUPE_NVCC_VERSION} and drupe's kernels have no "
      "architecture ${arch} in common: choose among ${known} (with an a: the kernels of that architecture alone)")
  endif()
endforeach()
if(NOT DRUPE_CUDA_ARCHS)
  message(FATAL_ERROR "DRUPE_CUDA_ARCHS is empty: choose among ${known}")
endif()
