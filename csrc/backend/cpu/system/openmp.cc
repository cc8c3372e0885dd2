// By default the threads of libgomp spin for about 16 ms while they wait for each other, and on a
// busy machine they occupy the core of the thread that they wait for. A limit of 3,000 iterations
// costs nothing on an idle machine, and made products on a busy machine 2 to 7 times faster.
//
// Each open device has its own team. As soon as the process has more of these threads than CPUs,
// libgomp lowers the limit to 100 iterations, and to 1,000 if the wait policy is `active`. With 100,
// threads sleep between products, and a model decodes at 0.6 to 0.8 of its speed.
//
// libgomp reads limit and policy from the environment once, when it is loaded, which is together with this
// module. So the module is linked with -z initfirst: this constructor runs before that of libgomp.
// JavaScript cannot set the variables, because process.env of a worker thread is a copy.
#include <cstdlib>

#include "backend/backend.h"

namespace diffqkv {
namespace {

constexpr const char* kSpinCount = "GOMP_SPINCOUNT";
constexpr const char* kWaitPolicy = "OMP_WAIT_POLICY";
bool is_set = false;

#ifdef __GLIBC__
__attribute__((constructor)) void limit_spinning() {
  if (std::getenv(kSpinCount) || std::getenv(kWaitPolicy)) return;
  is_set = true;
  setenv(kSpinCount, "3000", 1);
  setenv(kWaitPolicy, "active", 1);
}
#endif

}  // namespace

void restore_environment() {
#ifdef __GLIBC__
  if (is_set) {
    unsetenv(kSpinCount);
    unsetenv(kWaitPolicy);
  }
#endif
  is_set = false;
}

}  // namespace diffqkv
