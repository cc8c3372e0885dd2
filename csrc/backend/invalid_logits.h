// The error of a sample whose logits are not usable: a NaN, or all of them -inf. Its message names
// neither model nor type, which only the caller knows.
#pragma once

#include <string>
#include <utility>

#include "backend/error.h"

namespace diffqkv {

class InvalidLogits : public Error {
 public:
  explicit InvalidLogits(std::string message) : Error(ErrorCode::unsupported_model, std::move(message)) {}
};

}  // namespace diffqkv
