// `.metadata` of a PyTorch distributed checkpoint (DCP): which tensor lies where, piece by piece.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/numerics/dtype.h"

namespace fathom {

/// A box of a tensor, stored as one torch.save archive ("item") inside a .distcp file.
struct DcpChunk {
  std::vector<int64_t> offsets, sizes;
  std::string file;                // "__0_0.distcp"
  int64_t offset = 0, length = 0;  // of the item in the file, bytes
};

struct DcpTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<DcpChunk> chunks;  // disjoint, together the whole tensor
};

/// A pickled object; kept opaque.
struct DcpBytes {
  std::string file;
  int64_t offset = 0, length = 0;
};

struct DcpMetadata {
  std::map<std::string, DcpTensor> tensors;
  std::map<std::string, DcpBytes> bytes;
  std::string checkpoint_id;  // a name, for people
  std::string save_id;        // tells two saves apart
};

/// The pickle that Python's torch.distributed.checkpoint reads (protocol 2).
std::string encode_dcp_metadata(const DcpMetadata& metadata);

/// Reads ours and Python's (plain DCP and Megatron, protocols 2 to 5).
/// Errors: UserError for anything malformed, and for element types that are not supported.
DcpMetadata decode_dcp_metadata(std::string_view bytes, const std::string& origin);

/// Checks that every tensor is covered by its chunks exactly once, and that items lie inside their
/// files and do not overlap (two chunks may share one item as a whole).
/// @param file_sizes of every .distcp file that is named.
/// Errors: UserError.
void validate_dcp_metadata(const DcpMetadata& metadata,
                           const std::map<std::string, int64_t>& file_sizes,
                           const std::string& origin);

/// "__<rank>_<n>.distcp" and the like: no directory, no way out.
bool is_dcp_file_name(std::string_view name);

}  // namespace fathom
