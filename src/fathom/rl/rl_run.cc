#include "fathom/rl/rl_run.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/training_state.h"
#include "fathom/config/derived.h"
#include "fathom/parallel/model_parts.h"
#include "fathom/rl/rl_options.h"
#include "fathom/rl/sample_metrics.h"
#include "fathom/rl/summary.h"
#include "fathom/rollout/engine_options.h"
#include "fathom/rollout/generate.h"
#include "fathom/train/advantage.h"
#include "fathom/train/replay_check.h"

namespace fathom {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string step_name(const std::string& name, int64_t rollout_id) {
  // The evaluation before training has no step of its own: "start".
  char text[160];
  if (rollout_id < 0) {
    std::snprintf(text, sizeof text, "%s_start.jsonl", name.c_str());
  } else {
    std::snprintf(text, sizeof text, "%s_%07ld.jsonl", name.c_str(), static_cast<long>(rollout_id));
  }
  return text;
}

std::vector<float> all_gate_biases(const Weights& weights) {
  std::vector<float> bias;
  for (const LayerWeights& layer : weights.layers) {
    if (!layer.ffn.bias) continue;
    const Tensor values = layer.ffn.bias->compute.to_host();
    bias.insert(bias.end(), values.f32(), values.f32() + values.numel());
  }
  return bias;
}

}  // namespace

RlRun::RlRun(const ExecContext& ctx, Weights* weights, const Tokenizer& tokenizer,
             const config::Options& options, const std::string& run_path, const Json& config,
             RankGroups groups)
    : ctx_(ctx),
      groups_(std::move(groups)),
      weights_(weights),
      tokenizer_(tokenizer),
      options_(options),
      run_path_(run_path),
      process_start_seconds_(now_seconds()) {
  if (writes()) directory_.emplace(run_path);
  groups_.everyone.barrier();  // the directory is there, and no other run has it
  log_to_file(join_path(run_path,
                        writes() ? "run.log" : str_cat("rank_", groups_.everyone.rank(), ".log")));
  set_precisions();
  read_data();
  steps_per_rollout_ = steps_per_rollout(options_);
  num_rollouts_ = fathom::num_rollouts(options_, static_cast<int64_t>(prompts_.size()));
  policy_ = policy_step_options(options_);
  schedule_ = lr_schedule_options(options_.optimizer, num_rollouts_ * steps_per_rollout_);
  cursor_ = std::make_unique<PromptCursor>(static_cast<int64_t>(prompts_.size()),
                                           options_.data.rollout_shuffle,
                                           static_cast<uint64_t>(options_.data.rollout_seed));
  collector_ = std::make_unique<RolloutCollector>(prompts_, cursor_.get(),
                                                  collector_options(options_), engines());
  EngineOptions for_engine = engine_options(options_);
  for_engine.append_token = append_token_of(tokenizer_);
  for_engine.cache_answers = false;  // no prompt of a run continues an answer
  // Ranks that run one engine have to decide alike.
  for (int64_t bytes : groups_.everyone.concatenate(std::vector<int64_t>{for_engine.state_bytes})) {
    for_engine.state_bytes = std::min(for_engine.state_bytes, bytes);
  }
  engine_ = std::make_unique<Engine>(ctx_, engine_weights(), for_engine);
  const bool freeze_gate = options_.train.moe_router_freeze_gate;
  optimizer_ = std::make_unique<Optimizer>(
      *weights_, optimizer_options(options_.optimizer),
      [&](const Parameter& p) {
        return !p.name.starts_with("mtp.") && !(freeze_gate && p.name.ends_with(".gate.weight"));
      },
      groups_);
  frozen_bias_ = all_gate_biases(*weights_);
  resume();
  if (!writes()) return;
  directory_->save_config(config);
  metrics_ = std::make_unique<MetricsWriter>(run_path, first_rollout_ == 0 ? -1 : first_rollout_);
}

RlRun::~RlRun() { log_to_file(""); }

void RlRun::set_precisions() {
  const config::Derived derived = config::derive(options_);
  move_weights(ctx_, weights_);
  set_precision(ctx_, weights_, derived.train_precision);
  is_fast_ = derived.rollout_precision != derived.train_precision;
  if (derived.rollout_layout == config::RolloutLayout::kEngine) {
    engine_copy_ =
        std::make_unique<EngineCopy>(ctx_, groups_, *weights_, derived.rollout_precision);
  } else {
    rollout_weights_ = *weights_;
    rollout_weights_.layout = groups_.engine_layout();
    if (is_fast_) set_precision(ctx_, &rollout_weights_, derived.rollout_precision);
  }
  if (!is_fast_) return;
  log_warning("the trainer computes in ", precision_name(derived.train_precision), ", rollout in ",
              precision_name(derived.rollout_precision),
              ": their log-probs differ, train_rollout_logprob_abs_diff says by how much");
}

void RlRun::sync_engine() {
  if (!engine_copy_) {
    if (is_fast()) refresh_weights(ctx_, &rollout_weights_);
  } else if (engine_is_behind_) {
    engine_copy_->update(ctx_);
    engine_is_behind_ = false;
  }
}

void RlRun::read_data() {
  if (!options_.data.prompt_data)
    throw ConfigError("--prompt-data is needed: a .jsonl or .parquet file of prompts");
  prompts_ = read_prompt_file(options_, *options_.data.prompt_data, tokenizer_, false).prompts;
  const std::vector<std::string>& eval = options_.eval.eval_prompt_data;
  if (!options_.launch.enable_eval || !options_.eval.eval_interval) return;
  if (eval.empty() || (eval.size() > 1 && eval.size() % 2 != 0)) {
    throw ConfigError(str_cat("--eval-prompt-data: needs NAME PATH pairs, got ", eval.size(),
                              " values; --eval-interval asks for evaluations"));
  }
  for (size_t i = 0; i < eval.size(); i += 2) {
    const std::string name = eval.size() == 1 ? "aime" : eval[i];
    const std::string path = eval.size() == 1 ? eval[0] : eval[i + 1];
    if (name.empty() || name.find('/') != std::string::npos) {
      throw ConfigError(str_cat("--eval-prompt-data: the name \"", name,
                                "\" cannot name files\n  fix: use letters, digits, - and _"));
    }
    evaluation_sets_.push_back({name, read_prompt_file(options_, path, tokenizer_, true).prompts});
  }
}

bool RlRun::is_due(const std::optional<int64_t>& interval, int64_t rollout_id) const {
  return interval && ((rollout_id + 1) % *interval == 0 || rollout_id + 1 == num_rollouts_);
}

void RlRun::run() {
  if (first_rollout_ == 0 && !evaluation_sets_.empty() && !options_.eval.skip_eval_before_train) {
    const MetricList evaluation = evaluate_all(-1);
    if (writes()) metrics_->write(-1, evaluation);
  }
  start_trace();
  bool has_ended = true;
  for (int64_t id = first_rollout_; id < num_rollouts_; ++id) {
    run_step(id);
    if (trace_ && id - first_rollout_ + 1 >= *options_.debug.trace_rollouts) finish_trace();
    if (options_.debug.debug_exit_after_rollout &&
        id - first_rollout_ + 1 >= *options_.debug.debug_exit_after_rollout) {
      log_info("stopped after ", id - first_rollout_ + 1,
               " rollouts, as asked; the run is not finished");
      has_ended = false;
      break;
    }
  }
  finish_trace();
  if (has_ended && writes()) print_summary();
}

void RlRun::start_trace() {
  if (!options_.debug.trace_rollouts) return;
  groups_.everyone.barrier();
  trace_ = std::make_unique<Trace>(groups_.everyone.rank());
  groups_.everyone.observe_world(
      [trace = trace_.get()](const char* what, int64_t bytes, auto begin, auto end) {
        trace->add("communication", what, begin, end, bytes);
      });
}

void RlRun::finish_trace() {
  if (!trace_) return;
  groups_.everyone.observe_world(nullptr);
  const std::string path = join_path(run_path_, "trace.json");
  const double share = trace_->seconds("communication") / trace_->elapsed_seconds();
  const std::vector<std::string> events = groups_.everyone.all_gather(trace_->events());
  trace_.reset();
  if (!writes()) return;
  write_trace(path, events);
  log_info("wrote ", path, ": open it in ui.perfetto.dev; rank 0 spent ",
           number("%.1f", 100.0 * share), " % of the time in communication");
}

void RlRun::run_step(int64_t rollout_id) {
  const double start = now_seconds();
  sync_engine();
  engine_->set_weight_version(rollout_id + 1);
  engine_->take_memory();
  const RolloutResult rollout = [&] {
    const TraceSpan span(trace_.get(), "phase", "rollout");
    return collector_->collect(engine_.get());
  }();
  const ReleasedMemory released = engine_->release_memory();
  const double rolled_out = now_seconds();
  MetricList metrics = rollout_metrics(rollout);
  std::vector<const Sample*> samples;
  double response_tokens = 0.0, total_tokens = 0.0;
  for (const SampleGroup& group : rollout.groups) {
    for (const Sample& s : group) {
      samples.push_back(&s);
      response_tokens += static_cast<double>(s.response_length);
      total_tokens += static_cast<double>(s.tokens.size());
    }
  }
  if (writes()) directory_->write_samples("rollout", step_name("rollout", rollout_id), samples);

  const double train_start = now_seconds();
  if (!options_.debug.debug_rollout_only) {
    const MetricList train_metrics = train(rollout_id, rollout);
    metrics.insert(metrics.end(), train_metrics.begin(), train_metrics.end());
  }
  const double trained = now_seconds();
  if (rollout_id == first_rollout_) {
    log_info("first optimizer step ", number("%.2f", trained - process_start_seconds_),
             " s after the run was opened (evaluation included)");
  }
  const double rollout_time = rolled_out - start, train_time = trained - train_start;
  metrics.insert(metrics.end(),
                 {{"rollout/step", static_cast<double>(rollout_id)},
                  {"perf/rollout_time", rollout_time},
                  {"perf/tokens_per_gpu_per_sec", response_tokens / rollout_time},
                  {"perf/actor_train_time", train_time},
                  {"perf/actor_train_tok_per_s", total_tokens / train_time},
                  {"perf/step_time", trained - start},
                  {"perf/wait_time_ratio", rollout_time / (trained - start)},
                  {"perf/state_bytes_released", static_cast<double>(released.state_bytes)},
                  {"perf/save_model_time", last_save_seconds_}});
  if (!evaluation_sets_.empty() && is_due(options_.eval.eval_interval, rollout_id)) {
    const MetricList evaluation = evaluate_all(rollout_id);
    metrics.insert(metrics.end(), evaluation.begin(), evaluation.end());
  }
  if (writes()) metrics_->write(rollout_id, metrics);
  log_info(step_line(rollout_id, num_rollouts_, metrics));
  if (!options_.launch.skip_saving && is_due(options_.checkpoint.save_interval, rollout_id)) {
    save(rollout_id);
  }
}

MetricList RlRun::train(int64_t rollout_id, const RolloutResult& rollout) {
  const bool skip_zero = policy_.loss.entropy_coef == 0.0 && policy_.loss.kl_loss_coef == 0.0;
  std::vector<TrainSample> samples;
  for (const SampleGroup& group : rollout.groups) {
    std::vector<double> rewards;
    for (const Sample& s : group) rewards.push_back(s.reward);
    if (!options_.algorithm.disable_rewards_normalization) {
      rewards = grpo_advantages(rewards, !options_.algorithm.disable_grpo_std_normalization);
    }
    for (size_t i = 0; i < group.size(); ++i) samples.push_back({&group[i], rewards[i]});
  }
  const size_t per_step = samples.size() / static_cast<size_t>(steps_per_rollout_);

  MetricList metrics;
  for (int64_t step = 0; step < steps_per_rollout_; ++step) {
    const auto begin = samples.begin() + step * static_cast<int64_t>(per_step);
    std::vector<TrainSample> chosen;
    for (auto it = begin; it != begin + static_cast<int64_t>(per_step); ++it) {
      if (!skip_zero || it->advantage != 0.0) chosen.push_back(*it);
    }
    const auto num_skipped = static_cast<double>(per_step - chosen.size());
    // A step without a mixed group still steps; its first group runs forward for the P1 metric.
    if (chosen.empty()) {
      const auto group =
          std::min<size_t>(per_step, static_cast<size_t>(options_.rollout.n_samples_per_prompt));
      chosen.assign(begin, begin + static_cast<int64_t>(group));
    }
    const double N = static_cast<double>(per_step);
    const PolicyMetrics m = [&] {
      const TraceSpan span(trace_.get(), "phase", "forward and backward");
      return policy_forward_backward(ctx_, *weights_, chosen, N, policy_, groups_);
    }();
    const double forwarded = static_cast<double>(std::max<int64_t>(1, m.num_samples));
    // Before any update of this rollout: what decode reported must be what the trainer computes.
    const double difference = m.train_rollout_logprob_abs_diff / forwarded;
    if (step == 0 && difference != 0.0 && !is_fast()) {
      log_warning("step ", rollout_id, ": train_rollout_logprob_abs_diff is ", difference,
                  ", must be 0: rollout and trainer disagree, which is a bug",
                  first_replay_difference(chosen));
    }
    const double lr = learning_rate(schedule_, rollout_id * steps_per_rollout_ + step);
    const double grad_norm = [&] {
      const TraceSpan span(trace_.get(), "phase", "optimizer");
      return optimizer_->step(ctx_, lr);
    }();
    engine_is_behind_ = true;
    if (step == 0) {
      metrics.insert(metrics.end(), {{"train/train_rollout_logprob_abs_diff", difference},
                                     {"train/train_rollout_kl", m.train_rollout_kl / forwarded}});
    }
    if (step + 1 == steps_per_rollout_) {
      metrics.insert(metrics.end(),
                     {{"train/loss", m.loss / N},
                      {"train/pg_loss", m.pg_loss / N},
                      {"train/entropy_loss", m.entropy / forwarded},
                      {"train/pg_clipfrac", m.pg_clipfrac / N},
                      {"train/ppo_kl", m.ppo_kl / N},
                      {"train/kl_loss", m.kl_loss / forwarded},
                      {"train/ess_ratio", m.ess_ratio / forwarded},
                      {"train/grad_norm", grad_norm},
                      {"train/lr-pg_0", lr},
                      {"train/num_zero_advantage_samples", num_skipped},
                      {"train/step", static_cast<double>(rollout_id * steps_per_rollout_ + step)}});
    }
  }
  check_frozen_bias();
  return metrics;
}

/// Where routes and picks of rollout first differ from the trainer's; "" where they were not
/// recorded.
std::string RlRun::first_replay_difference(const std::vector<TrainSample>& samples) const {
  std::vector<const Sample*> recorded;
  for (const TrainSample& s : samples) recorded.push_back(s.sample);
  const ReplayCheck check =
      check_replay(ctx_, *weights_, recorded, policy_.micro_batches.max_tokens, groups_);
  if (check.num_tokens == 0) return "";
  return check.first ? "; " + check.first->text()
                     : "; experts and indexer picks are the same everywhere";
}

void RlRun::check_frozen_bias() const {
  if (!options_.train.freeze_e_score_correction_bias) return;
  const std::vector<float> now = all_gate_biases(*weights_);
  FATHOM_ASSERT(now.size() == frozen_bias_.size() &&
                    std::memcmp(now.data(), frozen_bias_.data(), now.size() * sizeof(float)) == 0,
                "expert_bias was modified but freeze_e_score_correction_bias is enabled!");
}

MetricList RlRun::evaluate_all(int64_t rollout_id) {
  const TraceSpan span(trace_.get(), "phase", "evaluation");
  sync_engine();
  engine_->set_weight_version(rollout_id + 2);
  engine_->take_memory();
  MetricList metrics;
  const double start = now_seconds();
  auto run_set = [&](const EvaluationSet& set, const std::string& prefix,
                     const EvaluationOptions& o) {
    const EvaluationResult result = evaluate(engine_.get(), set.prompts, o, engines());
    const std::string name = prefix + "/" + set.name;
    std::vector<const Sample*> samples;
    for (const Sample& sample : result.samples) samples.push_back(&sample);
    metrics.emplace_back(name, result.mean_reward);
    add_sample_metrics(name, samples, &metrics);
    if (writes())
      directory_->write_samples("eval", step_name(prefix + "_" + set.name, rollout_id), samples);
    log_info(name, " ", number("%.3f", result.mean_reward), " on ", set.prompts.size(), " prompts");
  };
  for (const EvaluationSet& set : evaluation_sets_) {
    run_set(set, "eval", evaluation_options(options_));
    if (options_.eval.eval_sampled) {
      run_set(set, "eval_sampled", sampled_evaluation_options(options_));
    }
  }
  metrics.emplace_back("eval/step", static_cast<double>(rollout_id));
  metrics.emplace_back("perf/eval_time", now_seconds() - start);
  return metrics;
}

void RlRun::save(int64_t rollout_id) {
  const TraceSpan span(trace_.get(), "phase", "save");
  const double start = now_seconds();
  const Json scalars = {
      {"rollout_id", rollout_id},     {"optimizer", optimizer_->scalars()},
      {"cursor", cursor_->to_json()}, {"collector", collector_->to_json()},
      {"seed", options_.train.seed},  {"rollout_seed", options_.data.rollout_seed},
      {"buffer", Json::array()}};
  save_state(rollout_id, scalars);
  last_save_seconds_ = now_seconds() - start;
}

void RlRun::save_state(int64_t rollout_id, const Json& scalars) {
  const std::vector<AdamMoments> moments = optimizer_->gathered_moments();
  const auto write = [&](const Weights& weights, const std::vector<AdamMoments>& all_moments) {
    if (!writes()) return;
    save_training_state(directory_->checkpoints(), rollout_id, weights, all_moments, scalars,
                        options_.checkpoint.save_retain_interval);
  };
  if (groups_.has_whole_model()) return write(*weights_, moments);
  // The state of one rank, so that any layout can go on with it.
  Weights whole = gather_weights(groups_, *weights_);
  std::map<std::string, Parameter*> by_name;
  for_each_parameter(whole, [&](Parameter& p) { by_name[p.name] = &p; });
  std::map<std::string, const AdamMoments*> mine;
  for (const AdamMoments& m : moments) mine[m.parameter->name] = &m;
  std::vector<AdamMoments> all_moments;
  for (Tensor AdamMoments::*which : {&AdamMoments::exp_avg, &AdamMoments::exp_avg_sq}) {
    size_t next = 0;
    gather_parameters(
        groups_, *weights_, [&](const Parameter& p) { return mine.contains(p.name); },
        [&](const Parameter& p) { return mine.at(p.name)->*which; },
        [&](const Parameter& p, const Tensor& values) {
          if (which == &AdamMoments::exp_avg) all_moments.push_back({by_name.at(p.name), {}, {}});
          AdamMoments& m = all_moments[next++];
          m.*which = Tensor::zeros(m.parameter->master.shape());
          m.parameter->store_row_major(values.f32(), m.*which);
        });
  }
  write(whole, all_moments);
}

void RlRun::resume() {
  const std::string checkpoints = join_path(run_path_, "checkpoints");
  const std::optional<int64_t> latest = latest_training_state(checkpoints);
  if (!latest) return;
  const std::string origin = str_cat("checkpoint of step ", *latest);
  std::vector<AdamMoments> moments = optimizer_->moments_to_fill();
  const Json scalars = load_training_state(checkpoints, *latest, weights_, &moments);
  optimizer_->set_scalars(scalars.at("optimizer"), origin);
  cursor_->restore(scalars.at("cursor"), origin);
  collector_->restore(scalars.at("collector"), origin);
  first_rollout_ = *latest + 1;
  log_info("resumed after step ", *latest + 1, " of ", num_rollouts_);
}

void RlRun::print_summary() const {
  log_info(run_summary(*directory_, evaluation_sets_.empty() ? "" : evaluation_sets_[0].name));
}

}  // namespace fathom
