#include "fathom/checkpoint/dcp_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/pickle_tensor.h"
#include "fathom/checkpoint/zip_crc.h"

namespace fathom {
namespace {

constexpr int64_t kSmallFile = 64 << 20;

// Size of a regular file; links are not followed, so that a checkpoint cannot point outside.
int64_t regular_file_size(const std::string& path) {
  struct stat info {};
  FATHOM_CHECK(::lstat(path.c_str(), &info) == 0, "cannot open ", path, ": ", std::strerror(errno));
  FATHOM_CHECK(S_ISREG(info.st_mode), path, " is not a regular file",
               "\n  fix: a checkpoint's files have to lie in its directory; copy them there");
  return info.st_size;
}

// Where a box begins in a row-major array, in elements.
int64_t flat_index(const std::vector<int64_t>& sizes, const std::vector<int64_t>& at) {
  int64_t index = 0;
  for (size_t d = 0; d < sizes.size(); ++d) index = index * sizes[d] + at[d];
  return index;
}

// Whether a box is one run of bytes in an array of these sizes.
bool is_one_run(const std::vector<int64_t>& box, const std::vector<int64_t>& sizes) {
  size_t d = box.size();
  while (d > 0 && box[d - 1] == sizes[d - 1]) --d;  // whole dimensions at the end
  for (size_t i = 0; i + 1 < d; ++i) {
    if (box[i] != 1) return false;
  }
  return true;
}

void check_crc(uint32_t crc, uint32_t stored, const std::string& origin) {
  FATHOM_CHECK(crc == stored, origin, ": its data is damaged: CRC ", crc, ", stored ", stored,
               "\n  fix: copy or write the checkpoint again");
}

// The CRC of a range of the file, read in pieces.
uint32_t crc_of(const FileReader& file, int64_t begin, int64_t num_bytes) {
  constexpr int64_t kPiece = 4 << 20;
  std::vector<uint8_t> piece(static_cast<size_t>(std::min(kPiece, num_bytes)));
  uint32_t crc = 0;
  for (int64_t at = 0; at < num_bytes; at += kPiece) {
    const int64_t n = std::min(kPiece, num_bytes - at);
    file.read(begin + at, n, piece.data());
    crc = crc32(crc, piece.data(), n);
  }
  return crc;
}

// Copies the box `sizes` from row-major `from` (of shape from_sizes, at from_at) to row-major `to`.
void copy_box(const uint8_t* from, const std::vector<int64_t>& from_sizes,
              const std::vector<int64_t>& from_at, uint8_t* to,
              const std::vector<int64_t>& to_sizes, const std::vector<int64_t>& to_at,
              const std::vector<int64_t>& sizes, int64_t item) {
  // Trailing dimensions that are taken whole on both sides are one run of bytes.
  size_t dims = sizes.size();
  int64_t run = item;
  while (dims > 0) {
    run *= sizes[dims - 1];
    --dims;
    if (sizes[dims] != from_sizes[dims] || sizes[dims] != to_sizes[dims]) break;
  }
  if (run == 0) return;
  std::vector<int64_t> index(dims, 0);
  for (int64_t s : sizes) {
    if (s == 0) return;
  }
  for (;;) {
    int64_t from_offset = 0, to_offset = 0;
    for (size_t d = 0; d < sizes.size(); ++d) {
      const int64_t i = d < dims ? index[d] : 0;
      from_offset = from_offset * from_sizes[d] + from_at[d] + i;
      to_offset = to_offset * to_sizes[d] + to_at[d] + i;
    }
    std::memcpy(to + to_offset * item, from + from_offset * item, static_cast<size_t>(run));
    size_t d = dims;
    while (d > 0 && ++index[d - 1] == sizes[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

}  // namespace

DcpReader::DcpReader(std::string directory)
    : directory_(std::move(directory)), metadata_path_(join_path(directory_, ".metadata")) {
  check_metadata_json(directory_);
  // Small files are on their way from the disk while .metadata is decoded.
  int64_t left = kSmallFile;
  for (const std::string& name : list_directory(directory_)) {
    const std::string path = join_path(directory_, name);
    std::error_code error;  // a pipe would never open
    if (!name.ends_with(".distcp") || !std::filesystem::is_regular_file(path, error)) continue;
    const FileReader reader(path);
    left -= reader.size();
    if (left < 0) break;
    reader.prefetch(0, reader.size());
  }
  regular_file_size(metadata_path_);
  metadata_ = decode_dcp_metadata(read_file(metadata_path_), metadata_path_);
  std::map<std::string, int64_t> sizes;
  const auto note = [&](const std::string& name) {
    if (!sizes.contains(name)) sizes[name] = regular_file_size(join_path(directory_, name));
  };
  for (const auto& [key, t] : metadata_.tensors) {
    for (const DcpChunk& c : t.chunks) note(c.file);
  }
  for (const auto& [key, b] : metadata_.bytes) note(b.file);
  validate_dcp_metadata(metadata_, sizes, metadata_path_);
}

const DcpTensor& DcpReader::tensor(const std::string& key) const {
  const auto it = metadata_.tensors.find(key);
  FATHOM_CHECK(it != metadata_.tensors.end(), directory_, " has no tensor ", key,
               "\n  fix: load a checkpoint of the same model");
  return it->second;
}

const DcpReader::OpenFile& DcpReader::file(const std::string& name) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<OpenFile>& file = files_[name];
  if (!file) {
    file = std::make_unique<OpenFile>(join_path(directory_, name));
    // Many small items one by one would be as many waits for the disk.
    if (file->reader.size() <= kSmallFile) file->reader.prefetch(0, file->reader.size());
  }
  return *file;
}

Tensor DcpReader::read(const std::string& key) {
  const DcpTensor& t = tensor(key);
  Tensor out = Tensor::empty(t.shape, t.dtype);
  read_box(key, std::vector<int64_t>(t.shape.size(), 0), t.shape, out.bytes());
  return out;
}

void DcpReader::read_box(const std::string& key, const std::vector<int64_t>& offsets,
                         const std::vector<int64_t>& sizes, void* out) {
  const DcpTensor& t = tensor(key);
  const size_t dims = t.shape.size();
  bool inside = offsets.size() == dims && sizes.size() == dims;
  for (size_t d = 0; inside && d < dims; ++d) {
    inside = offsets[d] >= 0 && sizes[d] >= 0 && offsets[d] <= t.shape[d] &&
             sizes[d] <= t.shape[d] - offsets[d];
  }
  FATHOM_CHECK(inside, directory_, ": ", key, " has the shape ", shape_to_string(t.shape),
               ", wanted ", shape_to_string(sizes), " at ", shape_to_string(offsets),
               "\n  fix: load a checkpoint of the same model");
  for (const DcpChunk& c : t.chunks) {
    std::vector<int64_t> from_at(dims), to_at(dims), common(dims);
    bool meets = true;
    for (size_t d = 0; d < dims; ++d) {
      const int64_t begin = std::max(c.offsets[d], offsets[d]);
      const int64_t end = std::min(c.offsets[d] + c.sizes[d], offsets[d] + sizes[d]);
      common[d] = end - begin;
      from_at[d] = begin - c.offsets[d];
      to_at[d] = begin - offsets[d];
      if (end <= begin) meets = false;
    }
    if (!meets) continue;
    const std::string origin = str_cat(join_path(directory_, c.file), ": ", key);
    const OpenFile& open = file(c.file);
    const MappedFile& mapped = open.map;
    FATHOM_CHECK(c.offset + c.length <= mapped.size(), origin, ": the file has become shorter");
    bool verify;
    {
      const std::lock_guard lock(mutex_);
      verify = verified_.emplace(c.file, c.offset).second;
    }
    if (open.reader.size() > kSmallFile) open.reader.prefetch(c.offset, c.length);
    const TensorView view =
        read_tensor_archive({mapped.data() + c.offset, static_cast<size_t>(c.length)}, origin,
                            verify, /*verify_elements=*/false);
    FATHOM_CHECK(view.dtype == t.dtype && view.shape == c.sizes, origin, ": the item holds ",
                 dtype_name(view.dtype), " ", shape_to_string(view.shape), ", .metadata says ",
                 dtype_name(t.dtype), " ", shape_to_string(c.sizes));
    const auto in_file = [&](std::span<const uint8_t> bytes) {
      return bytes.data() - mapped.data();
    };
    const int64_t item = dtype_size(t.dtype);
    const bool is_run = is_one_run(common, c.sizes) && is_one_run(common, sizes);
    const bool is_whole = common == c.sizes && view.record.size() == view.data.size();
    if (verify && !(is_run && is_whole)) {
      const auto stored = static_cast<int64_t>(view.record.size());
      check_crc(crc_of(open.reader, in_file(view.record), stored), view.crc, origin);
    }
    if (is_run) {
      uint8_t* to = static_cast<uint8_t*>(out) + flat_index(sizes, to_at) * item;
      int64_t n = item;
      for (const int64_t size : common) n *= size;
      open.reader.read(in_file(view.data) + flat_index(c.sizes, from_at) * item, n, to);
      if (verify && is_whole) check_crc(crc32(0, to, n), view.crc, origin);
      continue;
    }
    copy_box(view.data.data(), c.sizes, from_at, static_cast<uint8_t*>(out), sizes, to_at, common,
             dtype_size(t.dtype));
  }
}

Json DcpReader::read_common() const {
  const std::string path = join_path(directory_, "common.pt");
  regular_file_size(path);
  return decode_common_pt(read_file(path), path);
}

}  // namespace fathom
