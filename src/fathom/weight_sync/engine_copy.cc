#include "fathom/weight_sync/engine_copy.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/base/json.h"
#include "fathom/numerics/formats.h"

namespace fathom {
namespace {

constexpr int64_t kMessageBytes = int64_t{16} << 20;

std::vector<int64_t> part_shape(const Parameter& whole, int axis, int64_t count) {
  std::vector<int64_t> shape = whole.shape;
  shape[static_cast<size_t>(axis)] = count;
  return shape;
}

}  // namespace

EngineCopy::EngineCopy(const ExecContext& ctx, const RankGroups& groups, const Weights& trained,
                       Precision precision)
    : groups_(groups), trained_(trained), sends_masters_(precision != trained.precision()) {
  const std::vector<int> has_mtp =
      groups_.from_last_stage(std::vector<int>{trained.mtp.empty() ? 0 : 1});
  weights_ = make_weights(trained.config, has_mtp[0] == 1);
  for_each_parameter(weights_, [](Parameter& p) { p.alloc(); });
  move_weights(ctx, &weights_);
  set_precision(ctx, &weights_, precision);
  if (!sends_masters_) {
    for_each_parameter(weights_, [](Parameter& p) {
      if (p.compute.bytes() != p.master.bytes()) p.master = Tensor();
    });
  }
  find_parts();
}

void EngineCopy::find_parts() {
  std::map<std::string, const Parameter*> mine;
  for_each_parameter(trained_, [&](const Parameter& p) {
    if (groups_.is_first_replica(p) && !is_embedding_copy(trained_, p)) mine[p.name] = &p;
  });
  Json list = Json::array();
  for (const auto& [name, p] : mine) {
    list.push_back(
        {name, p->shard_axis, p->shard_begin, p->shape[static_cast<size_t>(p->shard_axis)]});
  }
  std::map<std::string, Parameter*> wholes;
  for_each_parameter(weights_, [&](Parameter& p) { wholes[p.name] = &p; });
  std::map<std::string, int64_t> found;
  const std::vector<std::string> lists = groups_.everyone.all_gather(list.dump());
  for (int rank = 0; rank < groups_.everyone.size(); ++rank) {
    for (const Json& entry : parse_json(lists[static_cast<size_t>(rank)], "a rank's parts")) {
      Part part;
      part.rank = rank;
      part.name = entry[0].get<std::string>();
      part.axis = entry[1].get<int>();
      part.begin = entry[2].get<int64_t>();
      part.count = entry[3].get<int64_t>();
      part.whole = wholes.at(part.name);
      if (rank == groups_.everyone.rank()) part.trained = mine.at(part.name);
      part.num_elements = 1;
      for (int64_t n : part_shape(*part.whole, part.axis, part.count)) part.num_elements *= n;
      part.num_bytes = part.num_elements * (is_narrow(*part.whole) ? 2 : 4);
      num_bytes_ += part.num_bytes;
      found[part.name] += part.num_elements;
      parts_.push_back(std::move(part));
    }
  }
  for (const auto& [name, p] : wholes) {
    FATHOM_ASSERT(found[name] == p->numel(), name, ": the ranks have ", found[name], " of ",
                  p->numel(), " elements");
  }
}

bool EngineCopy::is_narrow(const Parameter& p) const {
  return !sends_masters_ && p.operand_format() != OperandFormat::kF32;
}

void EngineCopy::pack(const Part& part, char* to) const {
  const Parameter& p = *part.trained;
  const Tensor& values = sends_masters_ ? p.master : p.compute;
  if (p.kind == ParameterKind::kTable) {
    const Tensor host = values.to_host();
    std::memcpy(to, host.bytes(), static_cast<size_t>(part.num_bytes));
    return;
  }
  Tensor rows = Tensor::empty({part.num_elements});
  p.load_row_major(values, rows.f32());
  if (!is_narrow(p)) {
    std::memcpy(to, rows.bytes(), static_cast<size_t>(part.num_bytes));
    return;
  }
  for (int64_t i = 0; i < part.num_elements; ++i) {
    const uint16_t code = f32_to_bf16(rows.f32()[i]);
    FATHOM_ASSERT(bf16_to_f32(code) == rows.f32()[i], p.name, " is not what its mode rounds it to");
    std::memcpy(to + 2 * i, &code, sizeof code);
  }
}

void EngineCopy::unpack(const Part& part, const char* from) {
  Parameter& p = *part.whole;
  Tensor& to = sends_masters_ ? p.master : p.compute;
  Parameter piece = p;
  piece.shape = part_shape(p, part.axis, part.count);
  piece.shard_axis = part.axis;
  piece.shard_begin = part.begin;
  if (p.kind == ParameterKind::kTable) {
    FATHOM_ASSERT(part.num_elements == p.numel(), p.name, " is cut");
    upload_memory(p.device, to.bytes(), from, static_cast<size_t>(part.num_bytes));
    return;
  }
  Tensor rows = Tensor::empty({part.num_elements});
  if (is_narrow(p)) {
    for (int64_t i = 0; i < part.num_elements; ++i) {
      uint16_t code;
      std::memcpy(&code, from + 2 * i, sizeof code);
      rows.f32()[i] = bf16_to_f32(code);
    }
  } else {
    std::memcpy(rows.bytes(), from, static_cast<size_t>(part.num_bytes));
  }
  if (part.num_elements == p.numel()) {
    p.store_row_major(rows.f32(), to);
    return;
  }
  Tensor whole = Tensor::empty({p.numel()});
  p.load_row_major(to, whole.f32());
  piece.put_into_global(rows.f32(), whole.f32());
  p.store_row_major(whole.f32(), to);
}

void EngineCopy::update(const ExecContext& ctx) {
  std::vector<char> message;
  for (size_t begin = 0; begin < parts_.size();) {
    size_t end = begin;
    int64_t num_bytes = 0;
    while (end < parts_.size() && parts_[end].rank == parts_[begin].rank &&
           (end == begin || num_bytes + parts_[end].num_bytes <= kMessageBytes)) {
      num_bytes += parts_[end++].num_bytes;
    }
    message.resize(static_cast<size_t>(num_bytes));
    const int from = parts_[begin].rank;
    if (from == groups_.everyone.rank()) {
      char* to = message.data();
      for (size_t i = begin; i < end; ++i) {
        pack(parts_[i], to);
        to += parts_[i].num_bytes;
      }
    }
    groups_.everyone.broadcast(message.data(), num_bytes, from);
    const char* at = message.data();
    for (; begin < end; ++begin) {
      unpack(parts_[begin], at);
      at += parts_[begin].num_bytes;
    }
  }
  if (sends_masters_) refresh_weights(ctx, &weights_);
}

}  // namespace fathom
