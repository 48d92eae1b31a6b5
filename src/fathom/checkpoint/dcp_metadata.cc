#include "fathom/checkpoint/dcp_metadata.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/checkpoint/pickle.h"
#include "fathom/checkpoint/pickle_tensor.h"
#include "fathom/numerics/tensor.h"

namespace fathom {
namespace {

constexpr std::string_view kMetadataModule = "torch.distributed.checkpoint.metadata";
constexpr std::string_view kFileModule = "torch.distributed.checkpoint.filesystem";
constexpr uint32_t kNone = PickleNode::kNoNode;

// ---- writing ----

void begin_object(PickleWriter& w, std::string_view module, std::string_view name) {
  w.global(module, name);
  w.empty_tuple();
  w.new_object();
}

void begin_state(PickleWriter& w) {
  w.empty_dict();
  w.mark();
}

void end_state(PickleWriter& w) {
  w.set_items();
  w.build();
}

void put_size(PickleWriter& w, const std::vector<int64_t>& size) {
  w.global("torch", "Size");
  w.integers(size);
  w.tuple(1);
  w.reduce();
}

void put_tensor(PickleWriter& w, const DcpTensor& t) {
  begin_object(w, kMetadataModule, "TensorStorageMetadata");
  begin_state(w);
  w.string("properties");
  begin_object(w, kMetadataModule, "TensorProperties");
  w.mark();
  w.global("torch", torch_dtype_name(t.dtype));
  w.global("torch.serialization", "_get_layout");
  w.string("torch.strided");
  w.tuple(1);
  w.reduce();
  w.boolean(false);  // requires_grad
  w.global(kMetadataModule, "_MEM_FORMAT_ENCODING");
  w.integer(0);  // contiguous
  w.tuple(1);
  w.reduce();
  w.boolean(false);  // pin_memory
  w.tuple_from_mark();
  w.build();
  w.string("size");
  put_size(w, t.shape);
  w.string("chunks");
  w.empty_list();
  w.mark();
  for (const DcpChunk& c : t.chunks) {
    begin_object(w, kMetadataModule, "ChunkStorageMetadata");
    begin_state(w);
    w.string("offsets");
    put_size(w, c.offsets);
    w.string("sizes");
    put_size(w, c.sizes);
    end_state(w);
  }
  w.appends();
  end_state(w);
}

// Key and value of storage_data.
void put_storage(PickleWriter& w, const std::string& key, const std::vector<int64_t>* chunk_offsets,
                 int64_t index, const std::string& file, int64_t offset, int64_t length) {
  begin_object(w, kMetadataModule, "MetadataIndex");
  begin_state(w);
  w.string("fqn");
  w.string(key);
  w.string("index");
  if (chunk_offsets != nullptr) {
    w.integer(index);
    w.string("offset");
    put_size(w, *chunk_offsets);
  } else {
    w.none();
  }
  end_state(w);
  begin_object(w, kFileModule, "_StorageInfo");
  begin_state(w);
  w.string("relative_path");
  w.string(file);
  w.string("offset");
  w.integer(offset);
  w.string("length");
  w.integer(length);
  end_state(w);
}

// ---- reading ----

class MetadataReader {
 public:
  explicit MetadataReader(const Pickle& pickle) : p_(pickle) {}

  DcpMetadata read() {
    const PickleNode& root = p_.expect(p_.root(), PickleKind::kObject, "the metadata object");
    const std::string& name = p_.node(root.callee).text;
    if (!name.ends_with(" Metadata") && !name.ends_with(" MCoreMetadata")) {
      p_.fail("its root is not a Metadata object");
    }
    const PickleNode& state = state_of(root, "Metadata");
    DcpMetadata out;
    const PickleNode& tensors = dict(state, "state_dict_metadata");
    for (size_t i = 0; i + 1 < tensors.items.size(); i += 2) {
      read_entry(p_.string(tensors.items[i], "a tensor's key"), tensors.items[i + 1], out);
    }
    const PickleNode& storage = dict(state, "storage_data");
    for (size_t i = 0; i + 1 < storage.items.size(); i += 2) {
      read_storage(storage.items[i], storage.items[i + 1], out);
    }
    for (const auto& [key, t] : out.tensors) {
      for (const DcpChunk& c : t.chunks) {
        if (c.file.empty()) p_.fail(str_cat("no storage for a chunk of ", key));
      }
    }
    for (const auto& [key, b] : out.bytes) {
      if (b.file.empty()) p_.fail(str_cat("no storage for ", key));
    }
    read_storage_meta(state, out);
    return out;
  }

 private:
  const PickleNode& state_of(const PickleNode& object, const char* what) {
    if (object.state == kNone) p_.fail(str_cat(what, " has no state"));
    return p_.expect(object.state, PickleKind::kDict, str_cat("the state of ", what));
  }
  // The value of a key that has to be there.
  uint32_t at(const PickleNode& dict, std::string_view key) {
    const uint32_t value = p_.find(dict, key);
    if (value == kNone) p_.fail(str_cat("the field '", key, "' is missing"));
    return value;
  }
  const PickleNode& dict(const PickleNode& state, std::string_view key) {
    return p_.expect(at(state, key), PickleKind::kDict, key);
  }
  const PickleNode& object(uint32_t index, std::string_view class_name) {
    const PickleNode& n = p_.expect(index, PickleKind::kObject, class_name);
    if (!p_.node(n.callee).text.ends_with(str_cat(" ", class_name))) {
      p_.fail(str_cat("expected a ", class_name, ", got ", p_.node(n.callee).text));
    }
    return n;
  }
  std::vector<int64_t> size(uint32_t index, std::string_view what) {
    const PickleNode& call = p_.expect(index, PickleKind::kCall, what);
    if (!p_.is_global(call.callee, "torch Size")) p_.fail(str_cat(what, " is not a torch.Size"));
    const PickleNode& args = p_.node(call.arguments);
    if (args.items.size() != 1) p_.fail(str_cat(what, " is not a torch.Size"));
    std::vector<int64_t> values = p_.integers(args.items[0], what);
    if (values.size() > 64) p_.fail(str_cat(what, " has more than 64 dimensions"));
    for (int64_t v : values) {
      if (v < 0) p_.fail(str_cat(what, " is negative"));
    }
    return values;
  }

  void read_entry(const std::string& key, uint32_t index, DcpMetadata& out) {
    const PickleNode& n = p_.expect(index, PickleKind::kObject, "a tensor's entry");
    if (p_.is_global(n.callee, str_cat(kMetadataModule, " BytesStorageMetadata"))) {
      out.bytes[key];
      return;
    }
    const PickleNode& state = state_of(object(index, "TensorStorageMetadata"), "a tensor");
    DcpTensor& t = out.tensors[key];
    const PickleNode& properties = object(at(state, "properties"), "TensorProperties");
    const PickleNode& values =
        p_.expect(properties.state, PickleKind::kTuple, "the state of TensorProperties");
    if (values.items.size() != 5) p_.fail("a TensorProperties state of other than 5 parts");
    const std::string& dtype = p_.expect(values.items[0], PickleKind::kGlobal, "a dtype").text;
    const std::optional<DType> known =
        dtype.starts_with("torch ") ? dtype_from_torch_name(dtype.substr(6)) : std::nullopt;
    if (!known) p_.fail(str_cat(key, ": element type ", dtype, " is not supported"));
    t.dtype = *known;
    t.shape = size(at(state, "size"), "a tensor's size");
    for (uint32_t c : p_.expect(at(state, "chunks"), PickleKind::kList, "chunks").items) {
      const PickleNode& chunk = state_of(object(c, "ChunkStorageMetadata"), "a chunk");
      t.chunks.emplace_back();
      t.chunks.back().offsets = size(at(chunk, "offsets"), "a chunk's offsets");
      t.chunks.back().sizes = size(at(chunk, "sizes"), "a chunk's sizes");
      by_offset_[{key, t.chunks.back().offsets}] = t.chunks.size() - 1;
    }
  }

  void read_storage(uint32_t key_index, uint32_t value_index, DcpMetadata& out) {
    const PickleNode& index = state_of(object(key_index, "MetadataIndex"), "MetadataIndex");
    const PickleNode& info = state_of(object(value_index, "_StorageInfo"), "_StorageInfo");
    const std::string& key = p_.string(at(index, "fqn"), "fqn");
    const std::string& file = p_.string(at(info, "relative_path"), "relative_path");
    if (!is_dcp_file_name(file)) p_.fail(str_cat("a file name that is not allowed: ", file));
    const uint32_t transforms = p_.find(info, "transform_descriptors");
    if (transforms != kNone && p_.node(transforms).kind != PickleKind::kNone) {
      p_.fail(str_cat(key, ": compressed or otherwise transformed items are not supported"));
    }
    const int64_t offset = p_.integer(at(info, "offset"), "an item's offset");
    const int64_t length = p_.integer(at(info, "length"), "an item's length");
    const uint32_t chunk_offset = p_.find(index, "offset");
    const auto bytes = out.bytes.find(key);
    if (bytes != out.bytes.end()) {
      if (!bytes->second.file.empty()) p_.fail(str_cat("two storage entries for ", key));
      bytes->second = {file, offset, length};
      return;
    }
    if (chunk_offset == kNone || p_.node(chunk_offset).kind == PickleKind::kNone) {
      p_.fail(str_cat("a storage entry without offset for ", key));
    }
    // The index is a hint that may be wrong; the offset identifies the chunk.
    const auto it = by_offset_.find({key, size(chunk_offset, "an offset")});
    if (it == by_offset_.end()) p_.fail(str_cat("a storage entry for an unknown chunk of ", key));
    DcpChunk& chunk = out.tensors[key].chunks[it->second];
    if (!chunk.file.empty()) p_.fail(str_cat("two storage entries for one chunk of ", key));
    chunk.file = file;
    chunk.offset = offset;
    chunk.length = length;
  }

  void read_storage_meta(const PickleNode& state, DcpMetadata& out) {
    const uint32_t index = p_.find(state, "storage_meta");
    if (index == kNone || p_.node(index).kind != PickleKind::kObject) return;
    const PickleNode& meta = state_of(object(index, "StorageMeta"), "StorageMeta");
    const auto text = [&](const char* key) {
      const uint32_t value = p_.find(meta, key);
      return value != kNone && p_.node(value).kind == PickleKind::kString ? p_.node(value).text
                                                                          : "";
    };
    out.checkpoint_id = text("checkpoint_id");
    out.save_id = text("save_id");
  }

  const Pickle& p_;
  std::map<std::pair<std::string, std::vector<int64_t>>, size_t> by_offset_;
};

// ---- validating ----

bool overlap(const DcpChunk& a, const DcpChunk& b) {
  for (size_t d = 0; d < a.sizes.size(); ++d) {
    if (a.offsets[d] >= b.offsets[d] + b.sizes[d] || b.offsets[d] >= a.offsets[d] + a.sizes[d]) {
      return false;
    }
  }
  return true;
}

std::optional<int64_t> volume(const std::vector<int64_t>& sizes) {
  int64_t v = 1;
  for (int64_t s : sizes) {
    if (__builtin_mul_overflow(v, s, &v)) return std::nullopt;
  }
  return v;
}

void check_cover(const std::string& key, const DcpTensor& t, const std::string& origin) {
  const auto bad = [&](const auto&... what) {
    throw UserError(str_cat(origin, ": ", key, " ", shape_to_string(t.shape), ": ", what...));
  };
  const std::optional<int64_t> total = volume(t.shape);
  if (!total) bad("its size overflows");
  int64_t sum = 0;
  std::vector<const DcpChunk*> order;
  for (const DcpChunk& c : t.chunks) {
    if (c.offsets.size() != t.shape.size() || c.sizes.size() != t.shape.size()) {
      bad("a chunk with ", c.offsets.size(), " dimensions");
    }
    for (size_t d = 0; d < t.shape.size(); ++d) {
      if (c.offsets[d] > t.shape[d] || c.sizes[d] > t.shape[d] - c.offsets[d]) {
        bad("a chunk at ", shape_to_string(c.offsets), " of size ", shape_to_string(c.sizes),
            " is out of bounds");
      }
    }
    const int64_t v = *volume(c.sizes);  // no overflow: inside the tensor
    if (v > *total - sum) bad("its chunks are more than the whole tensor");
    sum += v;
    if (v > 0) order.push_back(&c);
  }
  if (sum != *total) bad("its chunks cover ", sum, " of ", *total, " elements");
  if (t.shape.empty() && order.size() > 1) bad("its chunks overlap");
  if (t.shape.empty()) return;
  // Sweep along the dimension in which chunks differ most, comparing only those that meet there.
  size_t axis = 0;
  size_t most = 0;
  for (size_t d = 0; d < t.shape.size(); ++d) {
    std::vector<int64_t> starts;
    for (const DcpChunk* c : order) starts.push_back(c->offsets[d]);
    std::sort(starts.begin(), starts.end());
    const auto distinct =
        static_cast<size_t>(std::unique(starts.begin(), starts.end()) - starts.begin());
    if (distinct > most) {
      most = distinct;
      axis = d;
    }
  }
  std::sort(order.begin(), order.end(), [&](const DcpChunk* a, const DcpChunk* b) {
    return a->offsets[axis] < b->offsets[axis];
  });
  int64_t comparisons = 0;
  std::vector<const DcpChunk*> open;
  for (const DcpChunk* c : order) {
    std::erase_if(open, [&](const DcpChunk* o) {
      return o->offsets[axis] + o->sizes[axis] <= c->offsets[axis];
    });
    comparisons += static_cast<int64_t>(open.size()) + 1;
    if (comparisons > 100'000'000) bad("too many chunks to check (", t.chunks.size(), ")");
    for (const DcpChunk* o : open) {
      if (overlap(*o, *c)) bad("its chunks overlap at ", shape_to_string(c->offsets));
    }
    open.push_back(c);
  }
}

}  // namespace

std::string encode_dcp_metadata(const DcpMetadata& metadata) {
  PickleWriter w(/*memo_all=*/false);
  begin_object(w, kMetadataModule, "Metadata");
  begin_state(w);
  w.string("state_dict_metadata");
  w.empty_dict();
  w.mark();
  for (const auto& [key, tensor] : metadata.tensors) {
    w.string(key);
    put_tensor(w, tensor);
  }
  for (const auto& [key, bytes] : metadata.bytes) {
    w.string(key);
    begin_object(w, kMetadataModule, "BytesStorageMetadata");
  }
  w.set_items();
  w.string("planner_data");
  w.empty_dict();
  w.string("storage_data");
  w.empty_dict();
  w.mark();
  for (const auto& [key, tensor] : metadata.tensors) {
    int64_t index = 0;
    for (const DcpChunk& c : tensor.chunks) {
      put_storage(w, key, &c.offsets, index++, c.file, c.offset, c.length);
    }
  }
  for (const auto& [key, b] : metadata.bytes) {
    put_storage(w, key, nullptr, 0, b.file, b.offset, b.length);
  }
  w.set_items();
  w.string("storage_meta");
  begin_object(w, kMetadataModule, "StorageMeta");
  begin_state(w);
  w.string("checkpoint_id");
  w.string(metadata.checkpoint_id);
  w.string("save_id");
  w.string(metadata.save_id);
  w.string("load_id");
  w.none();
  w.string("modules");
  w.empty_list();
  end_state(w);
  w.string("version");
  w.string("1.0.0");
  end_state(w);
  return w.finish();
}

DcpMetadata decode_dcp_metadata(std::string_view bytes, const std::string& origin) {
  const Pickle pickle = Pickle::decode(bytes, PickleFile::kMetadata, origin);
  return MetadataReader(pickle).read();
}

void validate_dcp_metadata(const DcpMetadata& metadata,
                           const std::map<std::string, int64_t>& file_sizes,
                           const std::string& origin) {
  struct Item {
    int64_t offset, length;
    const std::string* key;
  };
  std::map<std::string, std::vector<Item>> items;
  const auto add = [&](const std::string& key, const std::string& file, int64_t offset,
                       int64_t length) {
    const auto size = file_sizes.find(file);
    FATHOM_CHECK(size != file_sizes.end(), origin, ": the file ", file, " of ", key, " is missing");
    FATHOM_CHECK(
        offset >= 0 && length > 0 && offset <= size->second && length <= size->second - offset,
        origin, ": ", key, ": item of ", length, " bytes at ", offset, " in ", file, ", which has ",
        size->second, " bytes", "\n  fix: the file is cut off; copy or write the checkpoint again");
    items[file].push_back({offset, length, &key});
  };
  for (const auto& [key, t] : metadata.tensors) {
    check_cover(key, t, origin);
    for (const DcpChunk& c : t.chunks) add(key, c.file, c.offset, c.length);
  }
  for (const auto& [key, b] : metadata.bytes) add(key, b.file, b.offset, b.length);
  for (auto& [file, list] : items) {
    std::sort(list.begin(), list.end(), [](const Item& a, const Item& b) {
      return std::pair(a.offset, a.length) < std::pair(b.offset, b.length);
    });
    for (size_t i = 1; i < list.size(); ++i) {
      const Item &a = list[i - 1], &b = list[i];
      const bool same = a.offset == b.offset && a.length == b.length;
      FATHOM_CHECK(same || b.offset >= a.offset + a.length, origin, ": ", *a.key, " and ", *b.key,
                   " overlap in ", file);
    }
  }
}

bool is_dcp_file_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".distcp";
  if (name.size() <= kSuffix.size() || name.size() > 255 || !name.ends_with(kSuffix)) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '_' ||
           c == '.' || c == '-';
  });
}

}  // namespace fathom
