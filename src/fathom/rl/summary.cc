#include "fathom/rl/summary.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {
namespace {

constexpr int kAnswersShown = 5;

std::optional<double> find(const MetricList& metrics, const std::string& name) {
  for (const auto& [key, value] : metrics) {
    if (key == name) return value;
  }
  return std::nullopt;
}

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::vector<Json> metric_lines(const RunDirectory& directory) {
  std::vector<Json> lines;
  const std::string path = join_path(directory.path(), "metrics.jsonl");
  const std::string text = read_file(path);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(parse_json(text.substr(begin, end - begin), path));
    begin = end + 1;
  }
  return lines;
}

std::vector<double> series(const std::vector<Json>& lines, const std::string& name) {
  std::vector<double> values;
  for (const Json& line : lines) {
    if (line.contains(name) && line[name].is_number()) values.push_back(line[name].get<double>());
  }
  return values;
}

/// At most `width` values: means of equal stretches.
std::vector<double> thinned(const std::vector<double>& values, size_t width) {
  if (values.size() <= width) return values;
  std::vector<double> out;
  for (size_t i = 0; i < width; ++i) {
    const size_t begin = i * values.size() / width, end = (i + 1) * values.size() / width;
    double sum = 0.0;
    for (size_t j = begin; j < end; ++j) sum += values[j];
    out.push_back(sum / static_cast<double>(end - begin));
  }
  return out;
}

std::string answers(const RunDirectory& directory, const std::string& set) {
  std::string last;
  for (const std::string& name : list_directory(join_path(directory.path(), "eval"))) {
    if (name.starts_with("eval_" + set + "_") && !name.ends_with("_start.jsonl")) last = name;
  }
  const std::vector<Json> before = directory.read_samples("eval", "eval_" + set + "_start.jsonl");
  const std::vector<Json> after =
      last.empty() ? std::vector<Json>() : directory.read_samples("eval", last);
  std::string text;
  auto mark = [](const Json& s) { return s["reward"].get<double>() > 0.0 ? "right" : "wrong"; };
  for (size_t i = 0; i < std::min({before.size(), after.size(), size_t{kAnswersShown}}); ++i) {
    text += "  " + after[i]["prompt"].get<std::string>() + "\n    before  " +
            before[i]["response"].get<std::string>() + "  (" + mark(before[i]) + ")\n    after   " +
            after[i]["response"].get<std::string>() + "  (" + mark(after[i]) + ")\n";
  }
  return text;
}

}  // namespace

std::string step_line(int64_t rollout_id, int64_t num_rollouts, const MetricList& metrics) {
  std::string line = str_cat("step ", rollout_id + 1, "/", num_rollouts);
  const std::pair<const char*, const char*> shown[] = {
      {"rollout/raw_reward", "  reward %.3f"},
      {"rollout/response_len/mean", "  length %.1f"},
      {"train/train_rollout_logprob_abs_diff", "  logprob diff %g"},
      {"train/grad_norm", "  grad norm %.3f"},
      {"train/lr-pg_0", "  lr %.3g"},
      {"perf/step_time", "  %.2f s"}};
  for (const auto& [name, format] : shown) {
    if (const auto value = find(metrics, name)) line += number(format, *value);
  }
  return line;
}

std::string run_summary(const RunDirectory& directory, const std::string& set) {
  const std::vector<Json> lines = metric_lines(directory);
  const std::vector<double> reward = series(lines, "rollout/raw_reward");
  std::string text = "\n";
  if (!reward.empty()) {
    text += str_cat("reward   ", sparkline(thinned(reward, 60), 0.0, 1.0), "  ",
                    number("%.3f", reward.front()), " -> ", number("%.3f", reward.back()), "\n");
  }
  for (const std::string prefix : {"eval/", "eval_sampled/"}) {
    const std::vector<double> accuracy = series(lines, prefix + set);
    if (set.empty() || accuracy.empty()) continue;
    text +=
        str_cat(prefix, set, "  ", sparkline(accuracy, 0.0, 1.0), "  ",
                number("%.3f", accuracy.front()), " -> ", number("%.3f", accuracy.back()), "\n");
  }
  const std::vector<double> difference = series(lines, "train/train_rollout_logprob_abs_diff");
  if (!difference.empty()) {
    text += str_cat("largest |log-prob of trainer - log-prob of rollout|  ",
                    number("%g", *std::max_element(difference.begin(), difference.end())), "\n");
  }
  if (!set.empty()) text += "\nanswers\n" + answers(directory, set);
  text += str_cat("\nlook next\n  ", directory.path(),
                  "/metrics.jsonl        every number of every step\n  ", directory.path(),
                  "/tensorboard          tensorboard --logdir ", directory.path(), "\n  ",
                  directory.path(), "/eval, rollout        answers to read\n  ", directory.path(),
                  "/checkpoints          fathom export-hf --load ... --output ...\n");
  return text;
}

}  // namespace fathom
