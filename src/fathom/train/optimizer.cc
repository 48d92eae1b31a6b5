#include "fathom/train/optimizer.h"

#include <bit>
#include <cmath>

#include "fathom/base/error.h"
#include "fathom/kernels/adam/adam.h"

namespace fathom {
namespace {

bool is_mtp(const Parameter& p) { return p.name.rfind("mtp.", 0) == 0; }

}  // namespace

Optimizer::Optimizer(Weights& weights, const OptimizerOptions& options,
                     const std::function<bool(const Parameter&)>& is_trained)
    : options_(options) {
  for (Parameter* p : parameters_by_name(weights)) {
    if (!p->has_gradient || !is_trained(*p)) continue;
    p->alloc_grad();
    moments_.push_back({p, Tensor::zeros_on(p->device, p->master.shape()),
                        Tensor::zeros_on(p->device, p->master.shape())});
  }
}

double Optimizer::step(const ExecContext& ctx, double lr) {
  double main_square = 0.0, mtp_square = 0.0;
  std::vector<NormTensor> grads;
  for (const AdamMoments& m : moments_) {
    const Parameter& p = *m.parameter;
    const bool is_matrix = p.kind == ParameterKind::kMatrix;
    grads.push_back({p.grad.f32(), p.numel(), is_matrix ? &p.panels : nullptr});
  }
  const std::vector<double> squares = squared_norms(ctx, grads);
  for (size_t i = 0; i < moments_.size(); ++i) {
    const AdamMoments& m = moments_[i];
    const double square = squares[i];
    FATHOM_CHECK(std::isfinite(square), "optimizer: the gradient of ", m.parameter->name,
                 " is not finite (squared norm ", square, ") at optimizer step ", num_steps_,
                 "\n  fix: lower --lr or --clip-grad, or look at the data of this step");
    (is_mtp(*m.parameter) ? mtp_square : main_square) += square;
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
  for (AdamMoments& m : moments_) {
    Parameter& p = *m.parameter;
    const bool decays = p.shape.size() >= 2;
    const AdamStep s = {.lr = static_cast<float>(lr),
                        .beta1 = static_cast<float>(options_.beta1),
                        .beta2 = static_cast<float>(options_.beta2),
                        .eps = static_cast<float>(options_.eps),
                        .weight_decay = decays ? static_cast<float>(options_.weight_decay) : 0.0f,
                        .bias_correction1 = 1.0f - beta1_power_,
                        .bias_correction2 = 1.0f - beta2_power_,
                        .grad_scale = is_mtp(p) ? mtp_scale : main_scale};
    adam_update(ctx, s, p.master.numel(), p.grad.f32(), p.master.f32(), m.exp_avg.f32(),
                m.exp_avg_sq.f32());
  }
  ctx.threads->parallel_for(static_cast<int64_t>(moments_.size()), 1,
                            [&](int64_t begin, int64_t end) {
                              for (int64_t i = begin; i < end; ++i) {
                                moments_[static_cast<size_t>(i)].parameter->refresh();
                              }
                            });
  zero_grad();
  return norm;
}

void Optimizer::zero_grad() {
  for (AdamMoments& m : moments_) m.parameter->zero_grad();
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
