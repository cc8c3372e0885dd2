#include "backend/error.h"

#include <cstdarg>
#include <cstdio>

namespace diffqkv {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return "ERR_INVALID_ARGUMENT";
    case ErrorCode::device_unavailable: return "ERR_DEVICE_UNAVAILABLE";
    case ErrorCode::out_of_memory: return "ERR_OUT_OF_MEMORY";
    case ErrorCode::invalid_checkpoint: return "ERR_INVALID_CHECKPOINT";
    case ErrorCode::unsupported_model: return "ERR_UNSUPPORTED_MODEL";
    case ErrorCode::kv_cache_full: return "ERR_KV_CACHE_FULL";
    case ErrorCode::disposed: return "ERR_DISPOSED";
    case ErrorCode::aborted: return "ABORT_ERR";
  }
  return "ERR_INTERNAL";
}

Error::Error(ErrorCode code, std::string message) : std::runtime_error(std::move(message)), code_(code) {}

void fail(ErrorCode code, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Error(code, text);
}

}  // namespace diffqkv
