#!/usr/bin/env bash
# Builds gpu_driver by nvcc and g++ alone, for a machine that has neither cmake nor Node.
#
#   build.sh [OUTPUT [ARCH]]    default: build-gpu-driver/gpu_driver of this checkout, sm_90a
#
# NVCC and CXX in the environment name other compilers.
set -eu
root=$(dirname "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")")
output=$(readlink -m "${1:-$root/build-gpu-driver/gpu_driver}")
export ARCH=${2:-sm_90a} OBJECTS=$output.objects
cd "$root"
mkdir -p "$OBJECTS"

# Compiles SOURCE for LANGUAGE: cuda, or c++ as emulation (CMakeLists.txt says how), which makes C++ of a .cu file.
compile() {
  local language=$1 source=$2 object
  object=$OBJECTS/$language-${source//\//-}.o
  local includes=(-Icsrc -Icuda -Itest/native -Itest/gpu)
  if [ "$language" = cuda ]; then
    ${NVCC:-nvcc} -std=c++20 -O3 -arch="$ARCH" -Xcompiler=-fno-strict-aliasing "${includes[@]}" -c "$source" -o "$object"
  else
    ${CXX:-g++} -std=c++20 -O2 -fno-strict-aliasing -fopenmp -Dcuda=emulated -Itest/emulation "${includes[@]}" -x c++ -c "$source" -o "$object"
  fi
}
export -f compile

# The backend is what the module adds to the kernels; the driver has none. The slowest to compile come first.
kernels=$(ls -S cuda/*.cu | grep -v cuda_backend.cu)
calls=$(ls test/native/calls/*.cu)
{
  printf 'cuda %s\n' cuda/attention_*.cu cuda/gemm.cu cuda/gemv.cu
  printf 'cuda %s\n' $kernels $calls test/gpu/*.cu
  printf 'c++ %s\n' $kernels $calls test/emulation/{device,engine}/*.cc test/gpu/*.cc csrc/backend/{error,dtype,check}.cc
} | awk '!seen[$0]++' | xargs -P "$(nproc)" -L 1 bash -c 'compile "$1" "$2" || exit 255' compile

${NVCC:-nvcc} -arch="$ARCH" -Xcompiler=-fopenmp "$OBJECTS"/*.o -o "$output"
rm -r "$OBJECTS"
echo "$output"
