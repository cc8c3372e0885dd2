// The kernels of test/native/wrappers.h, one for each function of the device layer, for nvcc to make PTX of.
#include "wrappers.h"

namespace diffqkv::cuda {

std::vector<Wrapper> instantiated_wrappers() { return wrappers(); }

}  // namespace diffqkv::cuda
