// By default the threads of libgomp spin for about 16 ms while they wait for each other, and on a
// busy machine they occupy the core of the thread that they wait for. A limit of 3,000 iterations
// costs nothing on an idle machine, and made products on a busy machine 2 to 7 times faster.
//
// libgomp reads the limit from the environment once, when it is loaded, which is together with this
// module. So the module is linked with -z initfirst: this constructor runs before that of libgomp.
// JavaScript cannot set the variable, because process.env of a worker thread is a copy.
#include <cstdlib>

#include "backend/backend.h"

namespace diffqkv {
namespace {

constexpr const char* kVariable = "GOMP_SPINCOUNT";
bool is_set = false;

#ifdef __GLIBC__
__attribute__((constructor)) void limit_spinning() {
  if (std::getenv(kVariable) || std::getenv("OMP_WAIT_POLICY")) return;
  is_set = setenv(kVariable, "3000", 1) == 0;
}
#endif

}  // namespace

void restore_environment() {
#ifdef __GLIBC__
  if (is_set) unsetenv(kVariable);
#endif
  is_set = false;
}

}  // namespace diffqkv
