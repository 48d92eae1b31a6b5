// `.metadata` of a distributed checkpoint: what is accepted survives being written and read again.
#include <map>

#include "fathom/checkpoint/dcp_metadata.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  fuzz::refuse_or_accept([&] {
    const DcpMetadata metadata = decode_dcp_metadata(fuzz::as_text(data, size), "input");
    std::map<std::string, int64_t> sizes;
    for (const auto& [key, tensor] : metadata.tensors) {
      for (const DcpChunk& chunk : tensor.chunks) {
        fuzz::require(is_dcp_file_name(chunk.file));
        sizes[chunk.file] = int64_t{1} << 40;
      }
    }
    for (const auto& [key, bytes] : metadata.bytes) sizes[bytes.file] = int64_t{1} << 40;
    fuzz::refuse_or_accept([&] { validate_dcp_metadata(metadata, sizes, "input"); });
    const DcpMetadata again = decode_dcp_metadata(encode_dcp_metadata(metadata), "rewritten");
    fuzz::require(again.tensors.size() == metadata.tensors.size() &&
                  again.bytes.size() == metadata.bytes.size());
  });
  return 0;
}
