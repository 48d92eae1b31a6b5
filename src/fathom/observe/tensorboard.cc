#include "fathom/observe/tensorboard.h"

#include <nmmintrin.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <ctime>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

void put_varint(std::string* out, uint64_t value) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

// Protocol buffer wire format: key = field << 3 | type (0 varint, 1 eight bytes, 2 length, 5 four
// bytes).
void put_bytes(std::string* out, uint32_t field, const std::string& bytes) {
  put_varint(out, field << 3 | 2);
  put_varint(out, bytes.size());
  *out += bytes;
}

template <typename T>
void put_fixed(std::string* out, uint32_t field, T value) {
  put_varint(out, field << 3 | (sizeof(T) == 8 ? 1 : 5));
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  out->append(raw, sizeof(T));
}

double now_seconds() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

uint32_t masked(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }

}  // namespace

uint32_t crc32c(const std::string& bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (char byte : bytes) crc = _mm_crc32_u8(crc, static_cast<unsigned char>(byte));
  return crc ^ 0xFFFFFFFFu;
}

TensorBoardWriter::TensorBoardWriter(const std::string& directory) {
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) != 0) std::strcpy(host, "localhost");
  const std::string path =
      join_path(directory, str_cat("events.out.tfevents.", static_cast<int64_t>(now_seconds()), ".",
                                   host, ".", ::getpid()));
  file_ = std::fopen(path.c_str(), "we");
  FATHOM_CHECK(file_ != nullptr, "cannot create ", path);
  std::string event;
  put_fixed(&event, 1, now_seconds());    // wall_time
  put_bytes(&event, 3, "brain.Event:2");  // file_version
  write_record(event);
}

TensorBoardWriter::~TensorBoardWriter() { std::fclose(file_); }

void TensorBoardWriter::write_record(const std::string& bytes) {
  std::string length(8, '\0');
  const uint64_t size = bytes.size();
  std::memcpy(length.data(), &size, 8);
  const uint32_t length_crc = masked(crc32c(length)), bytes_crc = masked(crc32c(bytes));
  std::string record = length;
  record.append(reinterpret_cast<const char*>(&length_crc), 4);
  record += bytes;
  record.append(reinterpret_cast<const char*>(&bytes_crc), 4);
  const bool written = std::fwrite(record.data(), 1, record.size(), file_) == record.size() &&
                       std::fflush(file_) == 0;
  FATHOM_CHECK(written, "cannot write TensorBoard events: is the disk full?");
}

void TensorBoardWriter::write(int64_t step, const MetricList& metrics) {
  std::string summary;
  for (const auto& [name, value] : metrics) {
    if (!std::isfinite(value)) continue;
    std::string scalar;
    put_bytes(&scalar, 1, name);                       // tag
    put_fixed(&scalar, 2, static_cast<float>(value));  // simple_value
    put_bytes(&summary, 1, scalar);
  }
  std::string event;
  put_fixed(&event, 1, now_seconds());
  put_varint(&event, 2 << 3);  // step, varint
  put_varint(&event, static_cast<uint64_t>(step));
  put_bytes(&event, 5, summary);
  write_record(event);
}

}  // namespace fathom
