// The threads of the CPU device.
#pragma once

namespace diffqkv::cpu {

// Sets the number of OpenMP threads of the calling thread, and starts them. Throws
// ERR_OUT_OF_MEMORY if they cannot be started.
void use_threads(int count);
// The same number as before on this thread.
void use_threads();

}  // namespace diffqkv::cpu
