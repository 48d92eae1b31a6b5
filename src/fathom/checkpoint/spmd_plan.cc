#include "fathom/checkpoint/spmd_plan.h"

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/checkpoint/megatron_names.h"
#include "fathom/checkpoint/names.h"
#include "fathom/checkpoint/pickle_tensor.h"

namespace fathom {
namespace {

constexpr int64_t kItemAlignment = 64, kPage = 4096, kPageAlignedFrom = 64 << 10;
constexpr int kPlanVersion = 1;  // of the rules in this file

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t num_elements(const std::vector<int64_t>& sizes) {
  int64_t n = 1;
  for (const int64_t s : sizes) n *= s;
  return n;
}

// A tensor of the model on its way through the plan.
struct Planned {
  const Parameter* parameter = nullptr;
  const ModelTensors::Source* source = nullptr;
  MegatronSlice slice;
  std::vector<TensorPart> parts;
  int64_t num_bytes = 0;  // stored
};

// What goes through one process in one go: a stage's dense tensors, or those of one expert rank.
struct GroupKey {
  int64_t stage = 0;
  int64_t expert_rank = -1;  // -1: everything else
  auto operator<=>(const GroupKey&) const = default;
};

class Planner {
 public:
  Planner(const ModelTensors& source, const SpmdPlanOptions& options)
      : source_(source),
        options_(options),
        layout_(options.layout),
        num_experts_(source.config().n_routed_experts),
        model_(make_weights(source.config())) {
    const std::string problem = layout_problem(layout_, source.config());
    if (!problem.empty()) {
      throw ConfigError(
          str_cat(problem, "\n  fix: choose a layout that fits the model in ", source.directory()));
    }
    stages_ = stage_of_layers(layout_, source.config().num_hidden_layers);
  }

  SpmdPlan make() {
    collect();
    plan_.rank_bytes.assign(static_cast<size_t>(layout_.num_ranks()), 0);
    plan_.tasks.num_experts = num_experts_;
    for (const auto& [key, tensors] : in_source_order()) plan_group(key, *tensors);
    for (size_t i = 0; i < plan_.files.size(); ++i) {
      plan_.num_bytes += plan_.files[i].num_bytes;
      plan_.rank_bytes[static_cast<size_t>(plan_.file_rank[i])] += plan_.files[i].num_bytes;
      plan_.unit_bytes[static_cast<size_t>(plan_.unit_of_file[i])] += plan_.files[i].num_bytes;
    }
    identify();
    return std::move(plan_);
  }

 private:
  struct Place {
    std::string file;
    int64_t begin;
    auto operator<=>(const Place&) const = default;
  };
  static Place place_of(const ModelTensors::Source& s) {
    const StoredTensor& w = s.tensor->weight;
    return {w.file->path(), w.entry->begin + s.first_row};
  }

  void collect() {
    std::vector<Planned> all;
    std::set<const EncodedTensor*> counted;
    for_each_parameter(model_, [&](const Parameter& p) {
      Planned t;
      t.parameter = &p;
      t.source = &source_.source(p.name);
      t.slice = megatron_slice(p.name, p.shape, num_experts_);
      t.num_bytes = p.numel() * dtype_size(t.slice.dtype);
      t.parts = cut_tensor(layout_, p.name, p.shape, t.num_bytes, options_.split_from_bytes);
      ++plan_.num_tensors;
      const EncodedTensor& encoded = *t.source->tensor;
      if (t.slice.dtype == DType::kBF16 && encoded.dtype != DType::kBF16) ++plan_.num_rounded;
      if (t.slice.dtype == DType::kF32) ++plan_.num_kept_fp32;
      if (counted.insert(&encoded).second) {
        plan_.num_source_bytes += encoded.weight.entry->num_bytes();
        if (encoded.encoding != Encoding::kPlain) {
          plan_.num_source_bytes += encoded.scale.entry->num_bytes();
        }
      }
      all.push_back(std::move(t));
    });
    // In the order of the source's bytes: both sides are then read and written from front to back.
    std::stable_sort(all.begin(), all.end(), [](const Planned& a, const Planned& b) {
      return place_of(*a.source) < place_of(*b.source);
    });
    for (Planned& t : all) groups_[group_of(t.parameter->name)].push_back(std::move(t));
  }

  GroupKey group_of(const std::string& name) const {
    if (layout_.num_ranks() == 1) return {};
    GroupKey key{stage_of(name, stages_), -1};
    if (const auto expert = parse_expert_name(name)) {
      key.expert_rank = expert->expert / (num_experts_ / layout_.expert);
    }
    return key;
  }

  std::vector<std::pair<GroupKey, std::vector<Planned>*>> in_source_order() {
    std::vector<std::pair<GroupKey, std::vector<Planned>*>> order;
    for (auto& [key, tensors] : groups_) order.emplace_back(key, &tensors);
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return place_of(*a.second->front().source) < place_of(*b.second->front().source);
    });
    return order;
  }

  // The tensors of a group in units of about equal size; each unit has one file for every shard.
  void plan_group(const GroupKey& key, std::vector<Planned>& tensors) {
    const bool routed = key.expert_rank >= 0;
    const int64_t width = routed ? layout_.expert_tensor : layout_.tensor;
    const int64_t span = routed ? layout_.expert * layout_.expert_tensor : layout_.tensor;
    const int64_t replicas = layout_.ranks_per_stage() / span;
    int64_t total = 0;
    for (const Planned& t : tensors) total += t.num_bytes;
    const int64_t per_unit = options_.max_file_bytes * width;
    const int64_t num_units = std::max(replicas, (total + per_unit - 1) / per_unit);
    int64_t done = 0;
    size_t next = 0;
    for (int64_t unit = 0; unit < num_units && next < tensors.size(); ++unit) {
      const int64_t until = unit + 1 == num_units ? total : total / num_units * (unit + 1);
      const size_t begin = next;
      while (next < tensors.size() && (done < until || next == begin))
        done += tensors[next++].num_bytes;
      const int64_t first_rank = key.stage * layout_.ranks_per_stage() + unit % replicas * span +
                                 (routed ? key.expert_rank * layout_.expert_tensor : 0);
      plan_unit({tensors.data() + begin, next - begin}, width, first_rank);
    }
  }

  void plan_unit(std::span<Planned> tensors, int64_t width, int64_t first_rank) {
    const auto unit = static_cast<int64_t>(plan_.unit_bytes.size());
    plan_.unit_bytes.push_back(0);
    files_.assign(static_cast<size_t>(width), std::nullopt);
    unit_ = unit;
    first_rank_ = first_rank;
    for (Planned& t : tensors) plan_tensor(t);
  }

  // The file of a shard in the current unit; made when it is first needed.
  size_t file_of(int64_t shard) {
    std::optional<size_t>& file = files_[static_cast<size_t>(shard)];
    if (file) return *file;
    const int64_t rank = first_rank_ + shard;
    file = plan_.files.size();
    plan_.files.push_back({str_cat("__", rank, "_", num_files_[rank]++, ".distcp"), 0, ""});
    plan_.file_rank.push_back(rank);
    plan_.unit_of_file.push_back(unit_);
    return *file;
  }

  // A tensor that is not cut goes to the shard that has least so far.
  int64_t least_loaded() {
    int64_t best = 0;
    const auto bytes = [&](int64_t shard) {
      const auto& file = files_[static_cast<size_t>(shard)];
      return file ? plan_.files[*file].num_bytes : 0;
    };
    for (int64_t shard = 1; shard < static_cast<int64_t>(files_.size()); ++shard) {
      if (bytes(shard) < bytes(best)) best = shard;
    }
    return best;
  }

  void plan_tensor(Planned& t) {
    const EncodedTensor& encoded = *t.source->tensor;
    const RowTarget target = t.slice.dtype == DType::kI32    ? RowTarget::kExpertTable
                             : t.slice.dtype == DType::kBF16 ? RowTarget::kBF16
                                                             : RowTarget::kF32;
    // A vector is one row of the source, whatever its parts are called.
    const bool vector = t.parameter->shape.size() < 2;
    const int64_t first_row = t.source->first_row;
    std::vector<RowOutput> outputs;
    for (const TensorPart& part : t.parts) {
      const size_t item = add_item(t, part, t.parts.size() == 1 ? least_loaded() : part.shard);
      outputs.push_back(vector ? RowOutput{item, 0, first_row, first_row + t.source->num_rows,
                                           part.row_begin, part.row_end}
                               : RowOutput{item, 0, first_row + part.row_begin,
                                           first_row + part.row_end, part.col_begin, part.col_end});
    }
    plan_.tasks.add(encoded, first_row, first_row + t.source->num_rows, target, outputs,
                    options_.piece_bytes);
    plan_.task_file.resize(plan_.tasks.tasks.size(),
                           static_cast<int64_t>(plan_.items[outputs[0].item].file));
  }

  size_t add_item(const Planned& t, const TensorPart& part, int64_t shard) {
    const size_t file = file_of(shard);
    DcpTensor& stored = plan_.metadata.tensors[t.slice.key];
    stored.dtype = t.slice.dtype;
    stored.shape = t.slice.shape;
    DcpChunk chunk;
    chunk.offsets = t.slice.offsets;
    chunk.sizes = t.slice.sizes;
    if (t.parts.size() > 1) {
      // The official dimensions are the last ones of the stored box.
      const size_t dims = t.parameter->shape.size(), first = chunk.sizes.size() - dims;
      chunk.offsets[first] += part.row_begin;
      chunk.sizes[first] = part.row_end - part.row_begin;
      if (dims == 2) {
        chunk.offsets[first + 1] += part.col_begin;
        chunk.sizes[first + 1] = part.col_end - part.col_begin;
      }
    }
    StreamItem item;
    item.file = file;
    item.num_bytes = num_elements(chunk.sizes) * dtype_size(stored.dtype);
    item.is_framed = true;
    item.dtype = stored.dtype;
    item.shape = chunk.sizes;
    item.alignment = item.num_bytes >= kPageAlignedFrom ? kPage : kItemAlignment;
    const TensorArchiveFrame frame =
        tensor_archive_frame(item.dtype, item.shape, item.alignment, 0);
    chunk.file = plan_.files[file].path;
    chunk.offset = round_up(plan_.files[file].num_bytes, item.alignment);
    item.offset = chunk.offset + static_cast<int64_t>(frame.head.size());
    chunk.length = static_cast<int64_t>(frame.head.size() + frame.tail.size()) + item.num_bytes;
    plan_.files[file].num_bytes = chunk.offset + chunk.length;
    stored.chunks.push_back(std::move(chunk));
    plan_.items.push_back(std::move(item));
    return plan_.items.size() - 1;
  }

  // Two runs work on the same thing exactly when this is equal.
  void identify() {
    std::string text = str_cat(
        "plan ", kPlanVersion, "\n", layout_.to_string(), " vocabulary x ", layout_.vocab_multiple,
        "\n", options_.split_from_bytes, " ", options_.max_file_bytes, "\n",
        sha256_hex(read_file(join_path(source_.directory(), "config.json"))));
    std::string times;
    for (const auto& file : source_.shards().files()) {
      struct stat info {};
      FATHOM_CHECK(::stat(file->path().c_str(), &info) == 0, "cannot read ", file->path());
      text += str_cat("\n", base_name(file->path()), " ", info.st_size, " ", file->header_hash());
      times += str_cat("\n", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
    }
    plan_.save_id = sha256_hex(text).substr(0, 32);
    plan_.id = sha256_hex(text + times).substr(0, 16);
  }

  const ModelTensors& source_;
  const SpmdPlanOptions& options_;
  const ParallelLayout layout_;
  int64_t num_experts_;
  const Weights model_;
  std::vector<int64_t> stages_;
  std::map<GroupKey, std::vector<Planned>> groups_;
  std::map<int64_t, int64_t> num_files_;  // by rank
  std::vector<std::optional<size_t>> files_;
  int64_t unit_ = 0, first_rank_ = 0;
  SpmdPlan plan_;
};

}  // namespace

SpmdPlan make_spmd_plan(const ModelTensors& source, const SpmdPlanOptions& options) {
  return Planner(source, options).make();
}

std::vector<int64_t> share_units(const std::vector<int64_t>& unit_bytes, int64_t num_processes) {
  int64_t total = 0;
  for (const int64_t n : unit_bytes) total += n;
  std::vector<int64_t> process;
  int64_t before = 0;
  for (const int64_t n : unit_bytes) {
    // By the unit's middle, so that the shares are even whatever their order.
    const double middle = (static_cast<double>(before) + static_cast<double>(n) / 2) /
                          static_cast<double>(std::max<int64_t>(1, total));
    process.push_back(std::min(num_processes - 1,
                               static_cast<int64_t>(middle * static_cast<double>(num_processes))));
    before += n;
  }
  return process;
}

}  // namespace fathom
