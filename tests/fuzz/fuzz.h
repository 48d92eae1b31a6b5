// What the harnesses share.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "fathom/base/error.h"

/// One input. @return 0. A broken promise of the parser ends the process.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fathom::fuzz {

inline std::string_view as_text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Ends the process when a parser returned something that it promises not to return.
inline void require(bool condition) {
  if (!condition) std::abort();
}

/// Runs `parse`. A UserError is the proper answer to bad bytes, every other exception a finding.
template <typename Parse>
void refuse_or_accept(Parse&& parse) {
  try {
    parse();
  } catch (const UserError&) {
  }
}

}  // namespace fathom::fuzz
