#include "fathom/checkpoint/pickle_names.h"

#include <algorithm>
#include <array>

namespace fathom {
namespace {

// Modules of which nothing may be named, and single names: each of them reaches code or files.
constexpr std::array kHostileModules = {
    std::string_view("os"),        std::string_view("posix"),      std::string_view("nt"),
    std::string_view("sys"),       std::string_view("subprocess"), std::string_view("importlib"),
    std::string_view("runpy"),     std::string_view("shutil"),     std::string_view("socket"),
    std::string_view("pickle"),    std::string_view("_pickle"),    std::string_view("operator"),
    std::string_view("_operator"), std::string_view("torch.jit"),  std::string_view("ctypes"),
    std::string_view("code"),      std::string_view("pty"),        std::string_view("webbrowser"),
};
constexpr std::array kHostileNames = {
    std::string_view("builtins eval"),
    std::string_view("builtins exec"),
    std::string_view("builtins getattr"),
    std::string_view("builtins __import__"),
    std::string_view("builtins open"),
    std::string_view("builtins compile"),
    std::string_view("builtins globals"),
    std::string_view("builtins setattr"),
    std::string_view("builtins delattr"),
    std::string_view("builtins vars"),
    std::string_view("builtins breakpoint"),
    std::string_view("functools partial"),
    std::string_view("torch.storage _load_from_bytes"),
};

constexpr std::array kDtypes = {
    std::string_view("float32"),        std::string_view("float64"),
    std::string_view("float16"),        std::string_view("bfloat16"),
    std::string_view("float8_e4m3fn"),  std::string_view("float8_e5m2"),
    std::string_view("float8_e8m0fnu"), std::string_view("float4_e2m1fn_x2"),
    std::string_view("int8"),           std::string_view("int16"),
    std::string_view("int32"),          std::string_view("int64"),
    std::string_view("uint8"),          std::string_view("uint16"),
    std::string_view("uint32"),         std::string_view("uint64"),
    std::string_view("bool"),           std::string_view("complex64"),
    std::string_view("complex128"),
};

constexpr std::array kTensorNames = {
    std::string_view("torch._utils _rebuild_tensor_v2"),
    std::string_view("torch._utils _rebuild_tensor_v3"),
    std::string_view("torch._utils _rebuild_parameter"),
    std::string_view("torch._tensor _rebuild_from_type_v2"),
    std::string_view("torch Tensor"),
    std::string_view("torch.nn.parameter Parameter"),
    std::string_view("collections OrderedDict"),
    std::string_view("torch FloatStorage"),
    std::string_view("torch DoubleStorage"),
    std::string_view("torch HalfStorage"),
    std::string_view("torch BFloat16Storage"),
    std::string_view("torch LongStorage"),
    std::string_view("torch IntStorage"),
    std::string_view("torch ShortStorage"),
    std::string_view("torch CharStorage"),
    std::string_view("torch ByteStorage"),
    std::string_view("torch BoolStorage"),
    std::string_view("torch ComplexFloatStorage"),
    std::string_view("torch ComplexDoubleStorage"),
    std::string_view("torch.storage UntypedStorage"),
    std::string_view("torch.storage TypedStorage"),
    std::string_view("torch Size"),
    std::string_view("torch device"),
};

constexpr std::array kMetadataNames = {
    std::string_view("torch Size"),
    std::string_view("torch.serialization _get_layout"),
    std::string_view("torch.distributed.checkpoint.metadata Metadata"),
    std::string_view("torch.distributed.checkpoint.metadata TensorStorageMetadata"),
    std::string_view("torch.distributed.checkpoint.metadata BytesStorageMetadata"),
    std::string_view("torch.distributed.checkpoint.metadata ChunkStorageMetadata"),
    std::string_view("torch.distributed.checkpoint.metadata TensorProperties"),
    std::string_view("torch.distributed.checkpoint.metadata MetadataIndex"),
    std::string_view("torch.distributed.checkpoint.metadata StorageMeta"),
    std::string_view("torch.distributed.checkpoint.metadata _MEM_FORMAT_ENCODING"),
    std::string_view("torch.distributed._shard.sharded_tensor.metadata TensorProperties"),
    std::string_view("torch.distributed._shard.sharded_tensor.metadata MEM_FORMAT_ENCODING"),
    std::string_view("torch.distributed.checkpoint.filesystem _StorageInfo"),
    std::string_view("torch.distributed.checkpoint.filesystem _StoragePrefix"),
    std::string_view("torch.distributed.checkpoint.planner SavePlan"),
    std::string_view("torch.distributed.checkpoint.planner WriteItem"),
    std::string_view("torch.distributed.checkpoint.planner WriteItemType"),
    std::string_view("torch.distributed.checkpoint.planner TensorWriteData"),
    std::string_view("torch.distributed.checkpoint.planner BytesIOWriteData"),
    std::string_view("pathlib PosixPath"),
    std::string_view("pathlib._local PosixPath"),
    std::string_view("pathlib PurePosixPath"),
    std::string_view("collections OrderedDict"),
    std::string_view("megatron.core.dist_checkpointing.strategies.torch MCoreMetadata"),
    std::string_view("megatron.core.dist_checkpointing.strategies.torch MCoreSavePlan"),
};

template <typename Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_dtype(std::string_view name) {
  return name.starts_with("torch ") && contains(kDtypes, name.substr(6));
}

}  // namespace

bool is_hostile_global(std::string_view name) {
  const std::string_view module = name.substr(0, name.find(' '));
  for (std::string_view hostile : kHostileModules) {
    if (module == hostile || (module.starts_with(hostile) && module[hostile.size()] == '.')) {
      return true;
    }
  }
  return contains(kHostileNames, name);
}

bool is_known_global(std::string_view name, PickleFile file) {
  switch (file) {
    case PickleFile::kTensor:
      return is_dtype(name) || contains(kTensorNames, name);
    case PickleFile::kMetadata:
      return is_dtype(name) || contains(kMetadataNames, name);
    case PickleFile::kCommon:
      return true;
  }
  return false;
}

}  // namespace fathom
