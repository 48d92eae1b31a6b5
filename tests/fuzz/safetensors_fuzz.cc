// Header of a safetensors file: an accepted file has every byte accounted for.
#include "fathom/checkpoint/safetensors.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  fuzz::refuse_or_accept([&] {
    const SafetensorsHeader header = parse_safetensors(fuzz::as_text(data, size), "input");
    int64_t position = -1;
    for (const TensorEntry& entry : header.tensors) {
      fuzz::require(entry.type != nullptr && entry.begin >= 8 && entry.begin <= entry.end);
      fuzz::require(position < 0 || entry.begin == position);
      position = entry.end;
    }
    fuzz::require(position < 0 || position == static_cast<int64_t>(size));
  });
  return 0;
}
