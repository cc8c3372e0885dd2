// The entry point of the module that is shipped. The module of the tests has its own.
#include "addon/addon.h"

namespace diffqkv::addon {

NODE_API_MODULE(diffqkv, init)

}  // namespace diffqkv::addon
