#include "fathom/checkpoint/zip.h"

#include <algorithm>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/checkpoint/zip_crc.h"

namespace fathom {
namespace {

constexpr int64_t kMax32 = 0xFFFFFFFF;
constexpr uint32_t kLocalHeader = 0x04034b50, kDescriptor = 0x08074b50, kCentralHeader = 0x02014b50,
                   kEnd = 0x06054b50, kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50;
constexpr int64_t kLocalHeaderSize = 30, kCentralHeaderSize = 46, kEndSize = 22, kEnd64Size = 56,
                  kLocatorSize = 20;
constexpr uint16_t kFlagDescriptor = 1u << 3, kFlagUtf8 = 1u << 11, kFlagEncrypted = 1u << 0;

void put16(std::string& out, uint64_t v) {
  for (int i = 0; i < 2; ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}
void put32(std::string& out, uint64_t v) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}
void put64(std::string& out, uint64_t v) {
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}
// A field of 32 bits that says "see the zip64 block" when the value does not fit.
void put32_or_escape(std::string& out, int64_t v) {
  put32(out, static_cast<uint64_t>(std::min(v, kMax32)));
}

uint64_t load(const uint8_t* p, int num_bytes) {
  uint64_t v = 0;
  for (int i = 0; i < num_bytes; ++i) v |= static_cast<uint64_t>(p[i]) << (8 * i);
  return v;
}

// torch starts the serialization id with a hash of the record names, made by its C++ library's
// std::hash. For the two sets of names that we write, this is what it makes of them.
struct KnownNames {
  std::string_view names, digits;
};
constexpr KnownNames kKnownNames[] = {
    {"data.pkl\n.format_version\n.storage_alignment\nbyteorder\ndata/0\nversion\n",
     "15728199511854643026"},
    {"data.pkl\n.format_version\n.storage_alignment\nbyteorder\nversion\n", "02908468677762923104"},
};

std::string padded_digits(uint64_t value) {
  const std::string digits = std::to_string(value);
  return std::string(20 - digits.size(), '0') + digits;
}

uint64_t hash_combine(uint64_t seed, uint64_t value) {  // c10's
  return seed ^ (value + 0x9e3779b9u + (seed << 6) + (seed >> 2));
}

}  // namespace

TorchArchiveWriter::TorchArchiveWriter(std::string prefix, ByteSink sink)
    : prefix_(std::move(prefix)), sink_(std::move(sink)) {}

void TorchArchiveWriter::emit(std::string_view bytes) {
  sink_(bytes.data(), static_cast<int64_t>(bytes.size()));
  position_ += static_cast<int64_t>(bytes.size());
}

void TorchArchiveWriter::add(std::string_view name, std::string_view data, int64_t alignment) {
  begin(name, static_cast<int64_t>(data.size()), alignment);
  write(data.data(), static_cast<int64_t>(data.size()));
  end();
}

void TorchArchiveWriter::begin(std::string_view name, int64_t num_bytes, int64_t alignment) {
  FATHOM_ASSERT(left_ < 0, "record ", name, " begun inside another");
  Entry entry;
  entry.name.append(prefix_).append("/").append(name);
  entry.size = num_bytes;
  entry.header_offset = position_;
  record_names_ += name;
  record_names_ += '\n';

  std::string extra;
  const bool large = num_bytes >= kMax32, far = position_ >= kMax32;
  if (large || far) {
    put16(extra, 1);
    put16(extra, (large ? 16u : 0u) + (far ? 8u : 0u));
    if (large) {
      put64(extra, static_cast<uint64_t>(num_bytes));
      put64(extra, 0);  // torch leaves the compressed size to the central directory
    }
    if (far) put64(extra, static_cast<uint64_t>(position_));
  }
  const int64_t start = position_ + kLocalHeaderSize + static_cast<int64_t>(entry.name.size()) +
                        static_cast<int64_t>(extra.size()) + 4;
  const int64_t pad = (alignment - start % alignment) % alignment;
  extra += "FB";
  put16(extra, static_cast<uint64_t>(pad));
  extra.append(static_cast<size_t>(pad), 'Z');

  std::string header;
  put32(header, kLocalHeader);
  put16(header, 0);  // version needed
  put16(header, num_bytes > 0 ? kFlagDescriptor | kFlagUtf8 : kFlagUtf8);
  put16(header, 0);  // method: stored
  put32(header, 0);  // time and date
  put32(header, 0);  // crc and sizes follow the data
  put32(header, 0);
  put32(header, 0);
  put16(header, entry.name.size());
  put16(header, extra.size());
  emit(header + entry.name + extra);
  entries_.push_back(std::move(entry));
  left_ = num_bytes;
}

void TorchArchiveWriter::write(const void* data, int64_t num_bytes) {
  FATHOM_ASSERT(num_bytes <= left_, "record ", entries_.back().name, ": too many bytes");
  if (num_bytes == 0) return;
  entries_.back().crc = crc32(entries_.back().crc, data, num_bytes);
  sink_(data, num_bytes);
  position_ += num_bytes;
  left_ -= num_bytes;
}

void TorchArchiveWriter::skip(int64_t num_bytes, uint32_t crc) {
  FATHOM_ASSERT(num_bytes == left_, "record ", entries_.back().name, ": skipped in part");
  entries_.back().crc = crc;
  position_ += num_bytes;
  left_ = 0;
}

void TorchArchiveWriter::end() {
  FATHOM_ASSERT(left_ == 0, "a record's bytes are missing: ", left_);
  left_ = -1;
  const Entry& entry = entries_.back();
  if (entry.size == 0) return;  // no descriptor, and no part in the id
  combined_crc_ = hash_combine(combined_crc_, entry.crc);
  std::string descriptor;
  put32(descriptor, kDescriptor);
  put32(descriptor, entry.crc);
  const bool wide = entry.size >= kMax32 || entry.header_offset >= kMax32;
  for (int i = 0; i < 2; ++i) {
    if (wide) {
      put64(descriptor, static_cast<uint64_t>(entry.size));
    } else {
      put32(descriptor, static_cast<uint64_t>(entry.size));
    }
  }
  emit(descriptor);
}

void TorchArchiveWriter::add_serialization_id() {
  std::string id;
  for (const KnownNames& known : kKnownNames) {
    if (known.names == record_names_) id = known.digits;
  }
  if (id.empty()) {
    const uint32_t names_crc =
        crc32(0, record_names_.data(), static_cast<int64_t>(record_names_.size()));
    id = padded_digits(mix64(names_crc, record_names_.size()));
  }
  add(".data/serialization_id", id + padded_digits(combined_crc_));
}

void TorchArchiveWriter::finish() {
  add_serialization_id();
  const int64_t directory_offset = position_;
  for (const Entry& e : entries_) {
    std::string extra;
    if (e.size >= kMax32 || e.header_offset >= kMax32) {
      put16(extra, 1);
      put16(extra, (e.size >= kMax32 ? 16u : 0u) + (e.header_offset >= kMax32 ? 8u : 0u));
      if (e.size >= kMax32) {
        put64(extra, static_cast<uint64_t>(e.size));
        put64(extra, static_cast<uint64_t>(e.size));
      }
      if (e.header_offset >= kMax32) put64(extra, static_cast<uint64_t>(e.header_offset));
    }
    std::string header;
    put32(header, kCentralHeader);
    put16(header, 0);  // version made by
    put16(header, 0);  // version needed
    put16(header, e.size > 0 ? kFlagDescriptor | kFlagUtf8 : kFlagUtf8);
    put16(header, 0);
    put32(header, 0);
    put32(header, e.crc);
    put32_or_escape(header, e.size);
    put32_or_escape(header, e.size);
    put16(header, e.name.size());
    put16(header, extra.size());
    put16(header, 0);  // comment
    put16(header, 0);  // disk
    put16(header, 0);  // internal attributes
    put32(header, 0);  // external attributes
    put32_or_escape(header, e.header_offset);
    emit(header + e.name + extra);
  }
  const int64_t directory_size = position_ - directory_offset;
  const int64_t end64_offset = position_;
  std::string tail;
  put32(tail, kEnd64);
  put64(tail, kEnd64Size - 12);
  put16(tail, 0x031E);  // version made by
  put16(tail, 45);      // version needed
  put32(tail, 0);
  put32(tail, 0);
  put64(tail, entries_.size());
  put64(tail, entries_.size());
  put64(tail, static_cast<uint64_t>(directory_size));
  put64(tail, static_cast<uint64_t>(directory_offset));
  put32(tail, kEnd64Locator);
  put32(tail, 0);
  put64(tail, static_cast<uint64_t>(end64_offset));
  put32(tail, 1);
  put32(tail, kEnd);
  put32(tail, 0);
  put16(tail, std::min<size_t>(entries_.size(), 0xFFFF));
  put16(tail, std::min<size_t>(entries_.size(), 0xFFFF));
  put32_or_escape(tail, directory_size);
  put32_or_escape(tail, directory_offset);
  put16(tail, 0);
  emit(tail);
}

TorchArchiveReader::TorchArchiveReader(std::span<const uint8_t> bytes, std::string origin,
                                       int64_t max_entries)
    : origin_(std::move(origin)) {
  const uint8_t* data = bytes.data();
  const uint64_t size = bytes.size();
  const auto bad = [&](const auto&... what) {
    throw UserError(str_cat(origin_, ": not a usable torch.save archive: ", what...,
                            "\n  fix: the file is damaged or was made by something else; write or "
                            "copy it again"));
  };
  if (size < kEndSize || load(data + size - kEndSize, 4) != kEnd) {
    bad("no end record in its last ", kEndSize, " bytes (", size, " bytes in all)");
  }
  const uint8_t* end = data + size - kEndSize;
  if (load(end + 20, 2) != 0) bad("it has a comment");
  uint64_t num_entries = load(end + 10, 2), directory_size = load(end + 12, 4),
           directory_offset = load(end + 16, 4);
  uint64_t limit = size - kEndSize;  // where the directory ends at the latest
  if (size >= kEndSize + kLocatorSize + kEnd64Size &&
      load(end - kLocatorSize, 4) == kEnd64Locator) {
    const uint64_t at = load(end - kLocatorSize + 8, 8);
    if (at != size - kEndSize - kLocatorSize - kEnd64Size || load(data + at, 4) != kEnd64) {
      bad("its zip64 end record is misplaced");
    }
    num_entries = load(data + at + 32, 8);
    directory_size = load(data + at + 40, 8);
    directory_offset = load(data + at + 48, 8);
    limit = at;
  }
  if (num_entries == 0 || num_entries > static_cast<uint64_t>(max_entries)) {
    bad(num_entries, " entries (1 to ", max_entries, " are allowed)");
  }
  if (directory_offset > limit || directory_size != limit - directory_offset) {
    bad("its directory (", directory_size, " bytes at ", directory_offset, ") is out of bounds");
  }

  std::vector<std::pair<uint64_t, uint64_t>> ranges;  // header start, data end
  std::string prefix;
  uint64_t at = directory_offset;
  for (uint64_t i = 0; i < num_entries; ++i) {
    if (limit - at < kCentralHeaderSize || load(data + at, 4) != kCentralHeader) {
      bad("entry ", i, " of its directory is cut off");
    }
    const uint8_t* p = data + at;
    const uint64_t flags = load(p + 8, 2), method = load(p + 10, 2);
    const uint64_t name_size = load(p + 28, 2), extra_size = load(p + 30, 2),
                   comment_size = load(p + 32, 2);
    uint64_t stored = load(p + 20, 4), length = load(p + 24, 4), header = load(p + 42, 4);
    if (limit - at - kCentralHeaderSize < name_size + extra_size + comment_size) {
      bad("entry ", i, " of its directory is cut off");
    }
    const std::string name(reinterpret_cast<const char*>(p + kCentralHeaderSize), name_size);
    if (method != 0 || (flags & kFlagEncrypted) != 0)
      bad("entry ", i, " is compressed or encrypted");
    const uint8_t* extra = p + kCentralHeaderSize + name_size;
    for (uint64_t e = 0; e + 4 <= extra_size;) {
      const uint64_t id = load(extra + e, 2), block = load(extra + e + 2, 2);
      if (block > extra_size - e - 4) bad("entry ", i, " has a broken extra field");
      if (id == 1) {
        uint64_t used = 0;
        for (uint64_t* field : {&length, &stored, &header}) {
          if (*field != static_cast<uint64_t>(kMax32)) continue;
          if (used + 8 > block) bad("entry ", i, " has a broken zip64 field");
          *field = load(extra + e + 4 + used, 8);
          used += 8;
        }
      }
      e += 4 + block;
    }
    at += kCentralHeaderSize + name_size + extra_size + comment_size;

    const size_t slash = name.find('/');
    if (slash == 0 || slash == std::string::npos || slash + 1 == name.size() ||
        name.find("..") != std::string::npos || name.find('\0') != std::string::npos) {
      bad("entry ", i, " has a name that is not allowed");
    }
    if (i == 0) prefix = name.substr(0, slash + 1);
    if (name.compare(0, prefix.size(), prefix) != 0) bad("entries with different prefixes");
    if (stored != length) bad("entry ", name, " has two sizes");
    if (header > directory_offset || directory_offset - header < kLocalHeaderSize ||
        load(data + header, 4) != kLocalHeader) {
      bad("entry ", name, " has no local header");
    }
    const uint64_t start =
        header + kLocalHeaderSize + load(data + header + 26, 2) + load(data + header + 28, 2);
    if (start > directory_offset || length > directory_offset - start) {
      bad("entry ", name, " (", length, " bytes at ", start, ") is out of bounds");
    }
    ranges.emplace_back(header, start + length);
    ZipRecord record;
    record.name = name.substr(prefix.size());
    record.data = bytes.subspan(start, length);
    record.crc = static_cast<uint32_t>(load(p + 16, 4));
    if (find(record.name) != nullptr) bad("two entries ", name);
    records_.push_back(std::move(record));
  }
  if (at != limit) bad("bytes between its directory and its end record");
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) bad("entries overlap");
  }
  if (find("constants.pkl") != nullptr) bad("it is a TorchScript archive");
  const ZipRecord* version = find("version");
  if (version == nullptr || version->data.empty() || version->data.size() > 4) {
    bad("it has no version record");
  }
  if (const ZipRecord* order = find("byteorder")) {
    const std::string_view text(reinterpret_cast<const char*>(order->data.data()),
                                order->data.size());
    if (text != "little") bad("byte order '", text.substr(0, 16), "'");
  }
}

const ZipRecord* TorchArchiveReader::find(std::string_view name) const {
  for (const ZipRecord& r : records_) {
    if (r.name == name) return &r;
  }
  return nullptr;
}

const ZipRecord& TorchArchiveReader::get(std::string_view name) const {
  const ZipRecord* record = find(name);
  FATHOM_CHECK(record != nullptr, origin_, ": the archive has no record ", name);
  return *record;
}

void TorchArchiveReader::verify(const ZipRecord& record) const {
  const uint32_t crc = crc32(0, record.data.data(), static_cast<int64_t>(record.data.size()));
  FATHOM_CHECK(crc == record.crc, origin_, ": record ", record.name, " is damaged: CRC ", crc,
               ", stored ", record.crc, "\n  fix: copy or write the checkpoint again");
}

}  // namespace fathom
