// The option --names as the checkpoint library's type.
#pragma once

#include "fathom/checkpoint/names.h"
#include "fathom/config/options.h"

namespace fathom {

inline NameDialect dialect_of(config::TensorNames names) {
  switch (names) {
    case config::TensorNames::kSglang:
      return NameDialect::kSglang;
    case config::TensorNames::kTransformers:
      return NameDialect::kTransformers;
    case config::TensorNames::kOfficial:
      break;
  }
  return NameDialect::kOfficial;
}

}  // namespace fathom
