// The symbolic unpickler, with the list of names of each kind of file (the first byte chooses).
#include "fathom/checkpoint/pickle.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  if (size == 0) return 0;
  constexpr PickleFile kFiles[] = {PickleFile::kTensor, PickleFile::kMetadata, PickleFile::kCommon};
  const PickleFile file = kFiles[data[0] % 3];
  fuzz::refuse_or_accept([&] {
    const Pickle pickle = Pickle::decode(fuzz::as_text(data + 1, size - 1), file, "input");
    const Json json = pickle.to_json(pickle.root());
    fuzz::require(!json.is_discarded());
  });
  return 0;
}
