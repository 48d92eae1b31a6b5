// The zip container of torch.save, and the one tensor in it: views never leave the archive.
#include <cstdio>

#include "fathom/checkpoint/pickle_tensor.h"
#include "fathom/checkpoint/zip.h"
#include "fuzz.h"

namespace {

bool is_inside(std::span<const uint8_t> part, std::span<const uint8_t> whole) {
  return part.empty() ||
         (part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  const std::span<const uint8_t> bytes(data, size);
  fuzz::refuse_or_accept([&] {
    const TorchArchiveReader archive(bytes, "input");
    for (const ZipRecord& record : archive.records()) {
      fuzz::require(is_inside(record.data, bytes));
      fuzz::refuse_or_accept([&] { archive.verify(record); });
    }
  });
  fuzz::refuse_or_accept([&] {
    const TensorView view = read_tensor_archive(bytes, "input", /*verify=*/false);
    fuzz::require(is_inside(view.data, bytes));
    int64_t num_bytes = dtype_size(view.dtype);
    for (const int64_t d : view.shape) num_bytes *= d;
    fuzz::require(static_cast<int64_t>(view.data.size()) == num_bytes);
  });
  return 0;
}
