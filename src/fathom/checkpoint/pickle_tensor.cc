#include "fathom/checkpoint/pickle_tensor.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {
namespace {

struct TypeNames {
  DType dtype;
  std::string_view torch_name;
  std::string_view storage;  // empty: an untyped storage and the newer rebuild function
};

constexpr TypeNames kTypes[] = {
    {DType::kBool, "bool", "BoolStorage"},     {DType::kU8, "uint8", "ByteStorage"},
    {DType::kI8, "int8", "CharStorage"},       {DType::kF8E4M3, "float8_e4m3fn", ""},
    {DType::kF8E8M0, "float8_e8m0fnu", ""},    {DType::kI16, "int16", "ShortStorage"},
    {DType::kF16, "float16", "HalfStorage"},   {DType::kBF16, "bfloat16", "BFloat16Storage"},
    {DType::kI32, "int32", "IntStorage"},      {DType::kF32, "float32", "FloatStorage"},
    {DType::kF64, "float64", "DoubleStorage"}, {DType::kI64, "int64", "LongStorage"},
};

const TypeNames& names_of(DType dtype) {
  for (const TypeNames& t : kTypes) {
    if (t.dtype == dtype) return t;
  }
  FATHOM_ASSERT(false, "no torch name for ", dtype_name(dtype));
  return kTypes[0];
}

int64_t count_elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

// torch's strides of a contiguous tensor: a size of 0 counts as 1.
std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(shape[i], 1);
  }
  return strides;
}

std::string tensor_pickle(DType dtype, const std::vector<int64_t>& shape) {
  const TypeNames& type = names_of(dtype);
  const bool untyped = type.storage.empty();
  const int64_t numel = count_elements(shape);
  PickleWriter w(/*memo_all=*/true);
  w.global("torch._utils", untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  w.mark();
  w.mark();
  w.string("storage");
  if (untyped) {
    w.global("torch.storage", "UntypedStorage");
  } else {
    w.global("torch", type.storage);
  }
  w.string("0");
  w.string("cpu");
  w.integer(untyped ? numel * dtype_size(dtype) : numel);
  w.tuple_from_mark();
  w.persistent_id();
  w.integer(0);  // storage offset
  w.integers(shape);
  w.integers(contiguous_strides(shape));
  w.boolean(false);  // requires_grad
  w.global("collections", "OrderedDict");
  w.empty_tuple();
  w.reduce();
  if (untyped) w.global("torch", type.torch_name);
  w.tuple_from_mark();
  w.reduce();
  return w.finish();
}

}  // namespace

std::string_view torch_dtype_name(DType dtype) { return names_of(dtype).torch_name; }

std::optional<DType> dtype_from_torch_name(std::string_view name) {
  for (const TypeNames& t : kTypes) {
    if (t.torch_name == name) return t.dtype;
  }
  return std::nullopt;
}

namespace {

// The records around the elements, which `elements` puts into the open record data/0.
template <typename Elements>
int64_t write_archive(DType dtype, const std::vector<int64_t>& shape, int64_t alignment,
                      const ByteSink& sink, Elements&& elements) {
  TorchArchiveWriter archive("archive", sink);
  archive.add("data.pkl", tensor_pickle(dtype, shape));
  archive.add(".format_version", "1");
  archive.add(".storage_alignment", std::to_string(alignment));
  archive.add("byteorder", "little");
  const int64_t num_bytes = count_elements(shape) * dtype_size(dtype);
  archive.begin("data/0", num_bytes, alignment);
  elements(archive, num_bytes);
  archive.end();
  archive.add("version", "3\n");
  archive.finish();
  return archive.position();
}

}  // namespace

int64_t write_tensor_archive(DType dtype, const std::vector<int64_t>& shape,
                             const ElementSource& elements, int64_t alignment,
                             const ByteSink& sink) {
  return write_archive(dtype, shape, alignment, sink, [&](TorchArchiveWriter& archive, int64_t) {
    elements([&](const void* data, int64_t n) { archive.write(data, n); });
  });
}

TensorArchiveFrame tensor_archive_frame(DType dtype, const std::vector<int64_t>& shape,
                                        int64_t alignment, uint32_t crc) {
  TensorArchiveFrame frame;
  std::string* part = &frame.head;
  const ByteSink sink = [&](const void* data, int64_t n) {
    part->append(static_cast<const char*>(data), static_cast<size_t>(n));
  };
  write_archive(dtype, shape, alignment, sink, [&](TorchArchiveWriter& archive, int64_t n) {
    archive.skip(n, crc);
    part = &frame.tail;
  });
  return frame;
}

TensorView read_tensor_archive(std::span<const uint8_t> archive, const std::string& origin,
                               bool verify) {
  const TorchArchiveReader zip(archive, origin);
  const ZipRecord& code = zip.get("data.pkl");
  if (verify) zip.verify(code);
  const Pickle pickle =
      Pickle::decode({reinterpret_cast<const char*>(code.data.data()), code.data.size()},
                     PickleFile::kTensor, origin);

  // A parameter is its tensor; hooks and flags are not ours.
  uint32_t root = pickle.root();
  if (pickle.node(root).kind == PickleKind::kCall &&
      pickle.is_global(pickle.node(root).callee, "torch._utils _rebuild_parameter")) {
    const PickleNode& args =
        pickle.expect(pickle.node(root).arguments, PickleKind::kTuple, "a parameter's arguments");
    if (args.items.empty()) pickle.fail("a parameter without its tensor");
    root = args.items[0];
  }
  const PickleNode& call = pickle.expect(root, PickleKind::kCall, "a tensor");
  const bool v2 = pickle.is_global(call.callee, "torch._utils _rebuild_tensor_v2");
  const bool v3 = pickle.is_global(call.callee, "torch._utils _rebuild_tensor_v3");
  if (!v2 && !v3) pickle.fail("its value is not one plain tensor");
  const std::vector<uint32_t>& args = pickle.node(call.arguments).items;
  if (args.size() < (v3 ? 7u : 6u) || args.size() > 8) pickle.fail("a tensor's argument count");

  const PickleNode& persistent = pickle.expect(args[0], PickleKind::kPersistent, "a storage");
  const std::vector<uint32_t>& id = pickle.node(persistent.arguments).items;
  if (id.size() != 5) pickle.fail("a storage id of other than 5 parts");
  const std::string storage = pickle.expect(id[1], PickleKind::kGlobal, "a storage type").text;
  const std::string& key = pickle.string(id[2], "a storage key");
  const int64_t storage_count = pickle.integer(id[4], "a storage's size");

  TensorView view;
  std::optional<DType> dtype;
  if (v3) {
    const std::string& name = pickle.expect(args[6], PickleKind::kGlobal, "a dtype").text;
    if (name.starts_with("torch ")) dtype = dtype_from_torch_name(name.substr(6));
  } else {
    for (const TypeNames& t : kTypes) {
      if (!t.storage.empty() && storage == str_cat("torch ", t.storage)) dtype = t.dtype;
    }
  }
  if (!dtype) pickle.fail(str_cat("an element type that is not supported (", storage, ")"));
  view.dtype = *dtype;

  const ZipRecord& record = zip.get(str_cat("data/", key));
  const int64_t item = dtype_size(view.dtype),
                record_size = static_cast<int64_t>(record.data.size());
  const int64_t unit = v3 ? 1 : item;
  if (storage_count < 0 || storage_count > record_size || storage_count * unit != record_size) {
    pickle.fail(str_cat("a storage of ", storage_count, " elements with ", record_size, " bytes"));
  }
  const int64_t offset = pickle.integer(args[1], "a storage offset");
  view.shape = pickle.integers(args[2], "a tensor's size");
  const std::vector<int64_t> strides = pickle.integers(args[3], "a tensor's stride");
  if (view.shape.size() > 64 || strides.size() != view.shape.size()) {
    pickle.fail("a tensor's size and stride differ in length");
  }
  int64_t numel = 1;
  for (int64_t d : view.shape) {
    if (d < 0 || __builtin_mul_overflow(numel, std::max<int64_t>(d, 1), &numel)) {
      pickle.fail("a tensor's size is negative or too large");
    }
  }
  if (std::find(view.shape.begin(), view.shape.end(), 0) != view.shape.end()) numel = 0;
  const std::vector<int64_t> expected = contiguous_strides(view.shape);
  for (size_t i = 0; i < strides.size(); ++i) {
    // The stride of a size of 1 (or of nothing at all) is never used.
    if (numel > 0 && view.shape[i] != 1 && strides[i] != expected[i]) {
      pickle.fail("a tensor that is not contiguous");
    }
  }
  const int64_t count = record_size / item;
  if (offset < 0 || offset > count || numel > count - offset) {
    pickle.fail(
        str_cat("a tensor of ", numel, " elements at ", offset, " in a storage of ", count));
  }
  if (verify) zip.verify(record);
  view.data =
      record.data.subspan(static_cast<size_t>(offset * item), static_cast<size_t>(numel * item));
  return view;
}

}  // namespace fathom
