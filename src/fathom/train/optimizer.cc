#include "fathom/train/optimizer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/adam/adam.h"
#include "fathom/parallel/data_parallel.h"

namespace fathom {
namespace {

bool is_mtp(const std::string& name) { return name.starts_with("mtp."); }

/// A divided tensor's gradient, row-major, on the first of those that have its parts.
Tensor whole_gradient(const Parameter& p, const dist::Group& members) {
  Tensor part = Tensor::empty(p.shape);
  p.get_grad_row_major(part.f32());
  const int64_t begin = p.shard_begin, count = p.shape[static_cast<size_t>(p.shard_axis)];
  std::vector<int64_t> ranges(2 * static_cast<size_t>(members.size()));
  const int64_t range[2] = {begin, count};
  members.all_gather(range, sizeof range, ranges.data());
  if (members.rank() != 0) {
    members.send(0, part.f32(), part.num_bytes());
    return {};
  }
  Tensor whole = Tensor::empty(p.global_shape);
  p.put_into_global(part.f32(), whole.f32());
  for (int m = 1; m < members.size(); ++m) {
    Parameter piece = p;
    piece.shard_begin = ranges[2 * static_cast<size_t>(m)];
    piece.shape[static_cast<size_t>(p.shard_axis)] = ranges[2 * static_cast<size_t>(m) + 1];
    const Tensor values = Tensor::empty(piece.shape);
    members.receive(m, values.f32(), values.num_bytes());
    piece.put_into_global(values.f32(), whole.f32());
  }
  return whole;
}

}  // namespace

Optimizer::Optimizer(Weights& weights, const OptimizerOptions& options,
                     const std::function<bool(const Parameter&)>& is_trained, RankGroups groups)
    : options_(options), groups_(std::move(groups)) {
  const Layout& layout = weights.layout;
  const std::vector<int> has_copy = groups_.stages.concatenate(
      std::vector<int>{layout.is_last_stage && !weights.embed.name.empty() ? 1 : 0});
  if ((layout.is_first_stage || layout.is_last_stage) && has_copy.back() == 1) {
    embedding_ = &weights.embed;
  }
  for (Parameter* p : parameters_by_name(weights)) {
    if (!p->has_gradient || !is_trained(*p) || is_embedding_copy(weights, *p)) continue;
    p->alloc_grad();
    parameters_.push_back(p);
  }
  owners_ = deal_parameters(groups_, parameters_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    AdamMoments m = {parameters_[i], {}, {}};
    if (is_mine(i)) {
      m.exp_avg = Tensor::zeros_on(parameters_[i]->device, parameters_[i]->master.shape());
      m.exp_avg_sq = Tensor::zeros_on(parameters_[i]->device, parameters_[i]->master.shape());
    }
    moments_.push_back(std::move(m));
  }
  agree_on_names();
}

/// Whether this rank tells the norm of the whole tensor: of those that have its parts, or the same
/// as this one, the first.
bool Optimizer::is_counted(size_t i) const {
  const Parameter& p = *parameters_[i];
  const Layout& layout = groups_.layout;
  return is_mine(i) && (is_routed_expert(p) ? layout.etp : layout.tp).rank() == 0;
}

void Optimizer::agree_on_names() {
  std::string mine;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (is_counted(i)) mine += parameters_[i]->name + "\n";
  }
  for (const std::string& names : groups_.everyone.all_gather(mine)) {
    for (size_t at = 0; at < names.size();) {
      const size_t end = names.find('\n', at);
      all_names_.emplace_back(names.substr(at, end - at), all_names_.size());
      at = end + 1;
    }
  }
  std::sort(all_names_.begin(), all_names_.end());
}

/// The same on every rank.
Optimizer::SquaredNorms Optimizer::squared_grad_norms(const ExecContext& ctx) const {
  std::vector<double> mine;
  std::vector<NormTensor> whole_here;
  std::vector<size_t> slots;  // of whole_here among mine
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = *parameters_[i];
    if (!is_mine(i)) continue;
    if (p.is_sharded()) {
      const Tensor whole = whole_gradient(p, members_of(groups_.layout, p.shard_group));
      if (!is_counted(i)) continue;
      mine.push_back(squared_norms(ctx, {{whole.f32(), whole.numel(), nullptr}}).front());
    } else if (is_counted(i)) {
      const bool is_matrix = p.kind == ParameterKind::kMatrix;
      whole_here.push_back({p.grad.f32(), p.numel(), is_matrix ? &p.panels : nullptr});
      slots.push_back(mine.size());
      mine.push_back(0.0);
    }
  }
  const std::vector<double> squares = squared_norms(ctx, whole_here);
  for (size_t i = 0; i < slots.size(); ++i) mine[slots[i]] = squares[i];
  const std::vector<double> all = groups_.everyone.concatenate(mine);
  SquaredNorms sums;
  for (const auto& [name, at] : all_names_) {
    const double square = all[at];
    FATHOM_CHECK(std::isfinite(square), "optimizer: the gradient of ", name,
                 " is not finite (squared norm ", square, ") at optimizer step ", num_steps_,
                 "\n  fix: lower --lr or --clip-grad, or look at the data of this step");
    (is_mtp(name) ? sums.mtp : sums.main) += square;
  }
  return sums;
}

/// The last stage's copy, which MTP reads, becomes what the first stage has made of it.
void Optimizer::share_embedding() {
  const dist::Group& stages = groups_.stages;
  if (stages.size() == 1 || embedding_ == nullptr) return;
  Parameter& embed = *embedding_;
  Tensor master = embed.master.to_host();
  if (stages.rank() == 0) {
    stages.send(stages.size() - 1, master.bytes(), master.num_bytes());
    return;
  }
  stages.receive(0, master.bytes(), master.num_bytes());
  upload_memory(embed.device, embed.master.bytes(), master.bytes(),
                static_cast<size_t>(master.num_bytes()));
  embed.refresh();
}

double Optimizer::step(const ExecContext& ctx, double lr) {
  sum_gradients(groups_, parameters_, owners_);
  const SquaredNorms squares = squared_grad_norms(ctx);
  const double norm = std::sqrt(squares.main);
  auto clip_factor = [&](double group_norm) {
    return options_.clip_grad > 0.0 && group_norm > options_.clip_grad
               ? static_cast<float>(options_.clip_grad / (group_norm + 1e-6))
               : 1.0f;
  };
  const float main_scale = clip_factor(norm), mtp_scale = clip_factor(std::sqrt(squares.mtp));
  ++num_steps_;
  beta1_power_ *= static_cast<float>(options_.beta1);
  beta2_power_ *= static_cast<float>(options_.beta2);
  for (size_t i = 0; i < moments_.size(); ++i) {
    if (!is_mine(i)) continue;
    AdamMoments& m = moments_[i];
    Parameter& p = *m.parameter;
    const bool decays = p.shape.size() >= 2;
    const AdamStep s = {.lr = static_cast<float>(lr),
                        .beta1 = static_cast<float>(options_.beta1),
                        .beta2 = static_cast<float>(options_.beta2),
                        .eps = static_cast<float>(options_.eps),
                        .weight_decay = decays ? static_cast<float>(options_.weight_decay) : 0.0f,
                        .bias_correction1 = 1.0f - beta1_power_,
                        .bias_correction2 = 1.0f - beta2_power_,
                        .grad_scale = is_mtp(p.name) ? mtp_scale : main_scale};
    adam_update(ctx, s, p.master.numel(), p.grad.f32(), p.master.f32(), m.exp_avg.f32(),
                m.exp_avg_sq.f32());
  }
  share_masters(groups_, parameters_, owners_);
  ctx.threads->parallel_for(static_cast<int64_t>(moments_.size()), 1,
                            [&](int64_t begin, int64_t end) {
                              for (int64_t i = begin; i < end; ++i) {
                                moments_[static_cast<size_t>(i)].parameter->refresh();
                              }
                            });
  share_embedding();
  zero_grad();
  return norm;
}

void Optimizer::zero_grad() {
  for (AdamMoments& m : moments_) m.parameter->zero_grad();
}

std::vector<AdamMoments> Optimizer::moments_to_fill() const {
  std::vector<AdamMoments> all = moments_;
  for (AdamMoments& m : all) {
    if (!m.exp_avg.defined())
      m.exp_avg = Tensor::zeros_on(m.parameter->device, m.parameter->master.shape());
    if (!m.exp_avg_sq.defined())
      m.exp_avg_sq = Tensor::zeros_on(m.parameter->device, m.parameter->master.shape());
  }
  return all;
}

std::vector<AdamMoments> Optimizer::gathered_moments() const {
  std::vector<AdamMoments> all = moments_;
  for (size_t i = 0; i < all.size(); ++i) {
    const Parameter& p = *parameters_[i];
    const dist::Group& replicas = groups_.replicas(p);
    if (replicas.rank() == 0 && owners_[i] != 0) {
      all[i].exp_avg = Tensor::empty_on(p.device, p.master.shape());
      all[i].exp_avg_sq = Tensor::empty_on(p.device, p.master.shape());
      replicas.receive(owners_[i], all[i].exp_avg.f32(), all[i].exp_avg.num_bytes());
      replicas.receive(owners_[i], all[i].exp_avg_sq.f32(), all[i].exp_avg_sq.num_bytes());
    } else if (is_mine(i) && owners_[i] != 0) {
      replicas.send(0, all[i].exp_avg.f32(), all[i].exp_avg.num_bytes());
      replicas.send(0, all[i].exp_avg_sq.f32(), all[i].exp_avg_sq.num_bytes());
    }
  }
  return all;
}

Json Optimizer::scalars() const {
  return Json{{"num_steps", num_steps_},
              {"beta1_power_bits", std::bit_cast<uint32_t>(beta1_power_)},
              {"beta2_power_bits", std::bit_cast<uint32_t>(beta2_power_)}};
}

void Optimizer::set_scalars(const Json& json, const std::string& origin) {
  try {
    num_steps_ = json.at("num_steps").get<int64_t>();
    beta1_power_ = std::bit_cast<float>(json.at("beta1_power_bits").get<uint32_t>());
    beta2_power_ = std::bit_cast<float>(json.at("beta2_power_bits").get<uint32_t>());
  } catch (const Json::exception& e) {
    throw UserError(str_cat(origin, ": optimizer scalars are damaged: ", e.what()));
  }
}

}  // namespace fathom
