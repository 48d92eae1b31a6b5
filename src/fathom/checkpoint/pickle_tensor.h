// One tensor as torch.save writes it: its pickle, and the whole archive around it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/checkpoint/pickle.h"
#include "fathom/checkpoint/zip.h"
#include "fathom/numerics/dtype.h"

namespace fathom {

/// "bfloat16" for kBF16, and back.
std::string_view torch_dtype_name(DType dtype);
std::optional<DType> dtype_from_torch_name(std::string_view name);

/// Hands the elements of a tensor over to a sink, row-major, in one or many pieces.
using ElementSource = std::function<void(const ByteSink& sink)>;

/// Writes the archive that torch.save makes of one contiguous CPU tensor, byte for byte.
/// @param alignment of the elements from the archive's start: 64 (torch's) or another power of two
/// up to 4096.
/// @return bytes written.
int64_t write_tensor_archive(DType dtype, const std::vector<int64_t>& shape,
                             const ElementSource& elements, int64_t alignment,
                             const ByteSink& sink);

/// What stands in such an archive before and behind the elements.
struct TensorArchiveFrame {
  std::string head, tail;  // their lengths depend on dtype, shape and alignment alone
};

/// @param crc of the elements' bytes (zip_crc.h); enters the tail.
TensorArchiveFrame tensor_archive_frame(DType dtype, const std::vector<int64_t>& shape,
                                        int64_t alignment, uint32_t crc);

/// A view of the elements inside an archive.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const uint8_t> data;  // row-major
};

/// Reads such an archive, ours or Python's.
/// @param verify also compares the stored CRC.
/// Errors: UserError for anything but one plain tensor that is stored contiguously.
TensorView read_tensor_archive(std::span<const uint8_t> archive, const std::string& origin,
                               bool verify);

}  // namespace fathom
