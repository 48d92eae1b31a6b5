#include "fathom/parallel/model_parts.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/base/json.h"

namespace fathom {
namespace {

struct Part {
  int rank;
  int axis;
  int64_t begin, count;
};

Tensor row_major(const Parameter& p, const Tensor& values) {
  if (p.kind == ParameterKind::kTable) return values.to_host().reshape(p.shape);
  Tensor rows = Tensor::empty(p.shape);
  p.load_row_major(values, rows.f32());
  return rows;
}

}  // namespace

void gather_parameters(const RankGroups& groups, const Weights& weights,
                       const std::function<bool(const Parameter&)>& is_wanted,
                       const std::function<Tensor(const Parameter&)>& value_of,
                       const std::function<void(const Parameter&, const Tensor&)>& visit) {
  const dist::Group& all = groups.everyone;
  std::map<std::string, const Parameter*> mine;
  Json list = Json::array();
  for_each_parameter(weights, [&](const Parameter& p) {
    const bool is_copy = p.name == "embed.weight" && !weights.layout.is_first_stage;
    if (!is_wanted(p) || is_copy || !groups.is_first_replica(p)) return;
    mine[p.name] = &p;
  });
  for (const auto& [name, p] : mine) {
    const int64_t count = p->shape[static_cast<size_t>(p->shard_axis)];
    list.push_back({name, p->shard_axis, p->shard_begin, count});
  }
  const std::vector<std::string> lists = all.all_gather(list.dump());
  if (all.rank() != 0) {
    for (const auto& [name, p] : mine) {
      const Tensor rows = row_major(*p, value_of(*p));
      all.send(0, rows.bytes(), rows.num_bytes());
    }
    return;
  }
  std::map<std::string, std::vector<Part>> parts;
  for (int rank = 0; rank < all.size(); ++rank) {
    for (const Json& entry : parse_json(lists[static_cast<size_t>(rank)], "a rank's parts")) {
      parts[entry[0].get<std::string>()].push_back(
          {rank, entry[1].get<int>(), entry[2].get<int64_t>(), entry[3].get<int64_t>()});
    }
  }
  const Weights whole = make_weights(weights.config, !weights.mtp.empty() || groups.shape.pp > 1);
  std::map<std::string, const Parameter*> templates;
  for_each_parameter(whole, [&](const Parameter& p) { templates[p.name] = &p; });
  for (const auto& [name, of_name] : parts) {
    const Parameter& p = *templates.at(name);
    const bool is_table = p.kind == ParameterKind::kTable;
    const Tensor values = Tensor::empty(p.shape, is_table ? DType::kI32 : DType::kF32);
    int64_t num_filled = 0;
    for (const Part& part : of_name) {
      Parameter piece = p;
      piece.shape[static_cast<size_t>(part.axis)] = part.count;
      piece.shard_axis = part.axis;
      piece.shard_begin = part.begin;
      Tensor rows;
      if (part.rank == 0) {
        rows = row_major(*mine.at(name), value_of(*mine.at(name)));
      } else {
        rows = Tensor::empty(piece.shape, values.dtype());
        all.receive(part.rank, rows.bytes(), rows.num_bytes());
      }
      if (is_table) {
        piece.put_into_global(rows.i32(), values.i32());
      } else {
        piece.put_into_global(rows.f32(), values.f32());
      }
      num_filled += rows.numel();
    }
    FATHOM_ASSERT(num_filled == p.numel(), name, ": the ranks have ", num_filled, " of ", p.numel(),
                  " elements");
    visit(p, values);
  }
}

Weights gather_weights(const RankGroups& groups, const Weights& weights) {
  Weights whole = make_weights(weights.config, !weights.mtp.empty() || groups.shape.pp > 1);
  std::map<std::string, Parameter*> by_name;
  for_each_parameter(whole, [&](Parameter& p) { by_name[p.name] = &p; });
  gather_parameters(
      groups, weights, [](const Parameter&) { return true; },
      [](const Parameter& p) { return p.master; },
      [&](const Parameter& p, const Tensor& values) {
        Parameter& to = *by_name.at(p.name);
        to.alloc();
        if (p.kind == ParameterKind::kTable) {
          std::copy_n(values.i32(), values.numel(), to.master.i32());
        } else {
          to.set_row_major(values.f32());
        }
      });
  return whole;
}

}  // namespace fathom
