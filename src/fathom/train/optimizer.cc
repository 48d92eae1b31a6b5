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

}  // namespace

Optimizer::Optimizer(Weights& weights, const OptimizerOptions& options,
                     const std::function<bool(const Parameter&)>& is_trained, RankGroups ranks)
    : options_(options), ranks_(std::move(ranks)) {
  // The first stage need not know of the last one's MTP to know who reads its embedding.
  const std::vector<int> has_copy = ranks_.stages.concatenate(
      std::vector<int>{weights.layout.is_last_stage && !weights.embed.name.empty() ? 1 : 0});
  const bool is_end = weights.layout.is_first_stage || weights.layout.is_last_stage;
  if (is_end && has_copy.back() == 1) embedding_ = &weights.embed;
  for (Parameter* p : parameters_by_name(weights)) {
    if (!p->has_gradient || !is_trained(*p) || is_embedding_copy(weights, *p)) continue;
    p->alloc_grad();
    parameters_.push_back(p);
  }
  owners_ = deal_parameters(replicas(), parameters_);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    AdamMoments m = {parameters_[i], {}, {}};
    if (is_mine(i)) {
      m.exp_avg = Tensor::zeros_on(parameters_[i]->device, parameters_[i]->master.shape());
      m.exp_avg_sq = Tensor::zeros_on(parameters_[i]->device, parameters_[i]->master.shape());
    }
    moments_.push_back(std::move(m));
  }
}

std::vector<Optimizer::SquaredNorm> Optimizer::squared_grad_norms(const ExecContext& ctx) const {
  std::vector<NormTensor> grads;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = *parameters_[i];
    const bool is_matrix = p.kind == ParameterKind::kMatrix;
    if (is_mine(i)) grads.push_back({p.grad.f32(), p.numel(), is_matrix ? &p.panels : nullptr});
  }
  const std::vector<double> mine = squared_norms(ctx, grads);
  // By parameter, the same on every member: the owner's value, to which the others add 0.
  std::vector<double> squares(parameters_.size());
  size_t next = 0;
  for (size_t i = 0; i < squares.size(); ++i) {
    if (is_mine(i)) squares[i] = mine[next++];
  }
  replicas().sum(squares.data(), static_cast<int64_t>(squares.size()));
  std::string names;  // of all stages' parameters, each behind its stage's others
  for (const Parameter* p : parameters_) names += p->name + '\n';
  std::vector<SquaredNorm> norms;
  const std::vector<double> all = ranks_.stages.concatenate(squares);
  for (const std::string& of_stage : ranks_.stages.all_gather(names)) {
    for (size_t begin = 0; begin < of_stage.size();) {
      const size_t end = of_stage.find('\n', begin);
      norms.push_back({of_stage.substr(begin, end - begin), all[norms.size()]});
      begin = end + 1;
    }
  }
  std::sort(norms.begin(), norms.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return norms;
}

/// The last stage's copy becomes what the first stage has made of it.
void Optimizer::share_embedding() {
  if (ranks_.stages.size() == 1 || embedding_ == nullptr) return;
  Parameter& embed = *embedding_;
  const int last = ranks_.stages.size() - 1;
  Tensor master = embed.master.to_host();
  if (ranks_.stages.rank() == 0) {
    ranks_.stages.send(last, master.bytes(), master.num_bytes());
    return;
  }
  ranks_.stages.receive(0, master.bytes(), master.num_bytes());
  upload_memory(embed.device, embed.master.bytes(), master.bytes(),
                static_cast<size_t>(master.num_bytes()));
  embed.refresh();
}

double Optimizer::step(const ExecContext& ctx, double lr) {
  sum_gradients(replicas(), parameters_, owners_);
  double main_square = 0.0, mtp_square = 0.0;
  for (const auto& [name, square] : squared_grad_norms(ctx)) {
    FATHOM_CHECK(std::isfinite(square), "optimizer: the gradient of ", name,
                 " is not finite (squared norm ", square, ") at optimizer step ", num_steps_,
                 "\n  fix: lower --lr or --clip-grad, or look at the data of this step");
    (is_mtp(name) ? mtp_square : main_square) += square;
  }
  const double norm = std::sqrt(main_square);
  auto clip_factor = [&](double group_norm) {
    return options_.clip_grad > 0.0 && group_norm > options_.clip_grad
               ? static_cast<float>(options_.clip_grad / (group_norm + 1e-6))
               : 1.0f;
  };
  const float main_scale = clip_factor(norm), mtp_scale = clip_factor(std::sqrt(mtp_square));
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
  share_masters(replicas(), parameters_, owners_);
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
  if (replicas().rank() != 0) {
    for (size_t i = 0; i < moments_.size(); ++i) {
      if (!is_mine(i)) continue;
      for (const Tensor& t : {moments_[i].exp_avg, moments_[i].exp_avg_sq}) {
        replicas().send(0, t.f32(), t.num_bytes());
      }
    }
    return moments_;
  }
  std::vector<AdamMoments> all = moments_to_fill();
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_mine(i)) continue;
    for (const Tensor& t : {all[i].exp_avg, all[i].exp_avg_sq}) {
      replicas().receive(owners_[i], t.f32(), t.num_bytes());
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
