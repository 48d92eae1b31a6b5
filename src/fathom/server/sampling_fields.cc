#include "fathom/server/sampling_fields.h"

#include <charconv>
#include <limits>

#include "fathom/base/hash.h"
#include "fathom/server/http.h"

namespace fathom {
namespace {

float number_between(JsonFields& fields, const char* key, double fallback, double low, double high,
                     const char* expected) {
  const double value = fields.number(key, fallback);
  if (!(value >= low && value <= high)) fields.fail(key, expected, Json(value));
  return static_cast<float>(value);
}

std::vector<std::pair<int32_t, float>> read_logit_bias(JsonFields& fields, int64_t vocab_size) {
  const Json* biases = fields.find("logit_bias");
  std::vector<std::pair<int32_t, float>> out;
  if (biases == nullptr) return out;
  if (!biases->is_object()) {
    fields.fail("logit_bias", "an object of token ids and numbers is expected", *biases);
  }
  for (const auto& [key, value] : biases->items()) {
    int64_t id = -1;
    const auto [end, ec] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (ec != std::errc() || end != key.data() + key.size() || id < 0 || id >= vocab_size) {
      fields.fail("logit_bias", str_cat("its keys are token ids from 0 to ", vocab_size - 1),
                  Json(key));
    }
    if (!value.is_number() || !(std::abs(value.get<double>()) <= 1000)) {
      fields.fail("logit_bias", "its values are numbers from -1000 to 1000", value);
    }
    out.emplace_back(static_cast<int32_t>(id), value.get<float>());
  }
  return out;
}

}  // namespace

SamplingParams read_sampling(JsonFields& fields, int64_t vocab_size, bool has_tokenizer) {
  SamplingParams p;
  constexpr double kHighest = std::numeric_limits<float>::max();
  p.temperature = number_between(fields, "temperature", 1, 0, kHighest,
                                 "a number of at least 0 is expected (0: the likeliest token)");
  p.top_p = number_between(fields, "top_p", 1, std::numeric_limits<float>::min(), 1,
                           "a number above 0 and at most 1 is expected");
  p.top_k = fields.integer("top_k", -1, -1, int64_t{1} << 30);
  if (p.top_k == 0) fields.fail("top_k", "-1 (all) or at least 1 is expected", Json(0));
  p.min_p = number_between(fields, "min_p", 0, 0, 1, "a number from 0 to 1 is expected");
  p.frequency_penalty =
      number_between(fields, "frequency_penalty", 0, -2, 2, "a number from -2 to 2 is expected");
  p.presence_penalty =
      number_between(fields, "presence_penalty", 0, -2, 2, "a number from -2 to 2 is expected");
  p.repetition_penalty = number_between(fields, "repetition_penalty", 1, 0.001, 2,
                                        "a number from 0.001 to 2 is expected");
  p.logit_bias = read_logit_bias(fields, vocab_size);
  p.stop = fields.texts("stop");
  if (p.stop.size() > kMaxStops) {
    fields.fail("stop", str_cat("at most ", kMaxStops, " texts are expected"),
                *fields.find("stop"));
  }
  for (const std::string& stop : p.stop) {
    if (stop.size() > kMaxStopBytes) {
      fields.fail("stop", str_cat("texts of at most ", kMaxStopBytes, " bytes are expected"),
                  Json(stop));
    }
  }
  if (!p.stop.empty() && !has_tokenizer) {
    throw HttpError(400, "stop: the checkpoint has no tokenizer, so there is no text to search",
                    fields.name("stop"));
  }
  p.stop_token_ids = fields.token_ids("stop_token_ids", vocab_size);
  p.ignore_eos = fields.flag("ignore_eos", false);
  return p;
}

TextOptions read_text_options(JsonFields& fields) {
  // Byte-level tokens carry their own blanks, so there are none to put between special tokens.
  fields.flag("spaces_between_special_tokens", true);
  return {.skip_special_tokens = fields.flag("skip_special_tokens", true),
          .no_stop_trim = fields.flag("no_stop_trim", false)};
}

std::vector<uint64_t> sample_seeds(uint64_t seed, int64_t count) {
  std::vector<uint64_t> seeds = {seed};
  for (int64_t i = 1; i < count; ++i) seeds.push_back(mix64(seed, static_cast<uint64_t>(i)));
  return seeds;
}

}  // namespace fathom
