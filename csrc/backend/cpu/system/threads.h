// The threads of the CPU device.
#pragma once

namespace diffqkv::cpu {

// Limits OpenMP on the calling thread to the CPUs that this process may use, and starts the threads. Throws
// ERR_OUT_OF_MEMORY if they cannot be started.
void use_num_threads();

}  // namespace diffqkv::cpu
