#include "fathom/checkpoint/dcp_reader.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fathom/base/error.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/pickle_tensor.h"

namespace fathom {
namespace {

// Size of a regular file; links are not followed, so that a checkpoint cannot point outside.
int64_t regular_file_size(const std::string& path) {
  struct stat info {};
  FATHOM_CHECK(::lstat(path.c_str(), &info) == 0, "cannot open ", path, ": ", std::strerror(errno));
  FATHOM_CHECK(S_ISREG(info.st_mode), path, " is not a regular file",
               "\n  fix: a checkpoint's files have to lie in its directory; copy them there");
  return info.st_size;
}

// Has the disk read these bytes of a mapped file in one go, not page by page.
void prefetch(const uint8_t* data, int64_t num_bytes) {
  constexpr uintptr_t kPage = 4096;
  if (num_bytes < (256 << 10)) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(num_bytes);
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
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

const MappedFile& DcpReader::file(const std::string& name) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<MappedFile>& file = files_[name];
  if (!file) file = std::make_unique<MappedFile>(join_path(directory_, name));
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
    const MappedFile& mapped = file(c.file);
    FATHOM_CHECK(c.offset + c.length <= mapped.size(), origin, ": the file has become shorter");
    bool verify;
    {
      const std::lock_guard lock(mutex_);
      verify = verified_.emplace(c.file, c.offset).second;
    }
    prefetch(mapped.data() + c.offset, c.length);
    const TensorView view = read_tensor_archive(
        {mapped.data() + c.offset, static_cast<size_t>(c.length)}, origin, verify);
    FATHOM_CHECK(view.dtype == t.dtype && view.shape == c.sizes, origin, ": the item holds ",
                 dtype_name(view.dtype), " ", shape_to_string(view.shape), ", .metadata says ",
                 dtype_name(t.dtype), " ", shape_to_string(c.sizes));
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
