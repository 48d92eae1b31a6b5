// Endpoints that steer the engine: aborting, pausing, weights.
#include <algorithm>
#include <cmath>

#include "fathom/base/hash.h"
#include "fathom/base/process_memory.h"
#include "fathom/server/api.h"
#include "fathom/server/json_fields.h"

namespace fathom {
namespace {

constexpr const char* kBusy =
    "requests are unfinished; wait for them, abort them or set abort_all_requests";

constexpr const char* kWeightsAreAway =
    "the weights were released; resume_memory_occupation brings them back";

HttpResponse ok_message(const std::string& message) {
  return json_response({{"message", message}, {"status", "ok"}});
}

/// {success, message}: 200 or 400.
HttpResponse outcome(bool success, const std::string& message, Json more = Json::object()) {
  Json json{{"success", success}, {"message", message}};
  json.update(more);
  return json_response(json, success ? 200 : 400);
}

/// A body that may be left out.
Json optional_body(const HttpRequest& request) {
  return request.body.empty() ? Json::object() : parse_body(request.body);
}

std::string hash_of(const Parameter& p) {
  const bool is_table = p.kind == ParameterKind::kTable;
  if (is_table) {
    const Tensor table = p.master.to_host();
    return sha256_hex(
        {reinterpret_cast<const char*>(table.bytes()), static_cast<size_t>(table.num_bytes())});
  }
  std::vector<float> values(static_cast<size_t>(p.numel()));
  p.get_row_major(values.data());
  return sha256_hex({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)});
}

/// Which memory is meant; CUDA graphs are none here.
struct MemoryTags {
  bool states = false, weights = false;
  bool is_default = false;  // all, as nothing was said
};

MemoryTags read_memory_tags(const Json& body) {
  JsonFields fields(body, "");
  const std::vector<std::string> names = fields.texts("tags");
  fields.refuse_unknown();
  MemoryTags tags;
  tags.is_default = names.empty();
  if (tags.is_default) tags.states = tags.weights = true;
  for (const std::string& name : names) {
    if (name == "kv_cache") {
      tags.states = true;
    } else if (name == "weights") {
      tags.weights = true;
    } else if (name != "cuda_graph") {
      fields.fail("tags", "kv_cache, weights or cuda_graph are expected", Json(name));
    }
  }
  return tags;
}

using Hashes = std::vector<std::pair<std::string, std::string>>;

Hashes hashes_of(const Weights& weights) {
  Hashes out;
  for_each_parameter(weights, [&](const Parameter& p) { out.emplace_back(p.name, hash_of(p)); });
  std::sort(out.begin(), out.end());
  return out;
}

std::string hash_of_all(const Hashes& hashes) {
  std::string all;
  for (const auto& [name, hash] : hashes) all += name + " " + hash + "\n";
  return sha256_hex(all);
}

}  // namespace

HttpResponse Api::flush_cache(const HttpRequest&) {
  const bool is_flushed = service_.run_without_states([](Engine& engine) { engine.flush_cache(); });
  if (is_flushed) return text_response("Cache flushed.\n");
  return text_response("Flush cache failed: requests are running or queued.\n", 400);
}

HttpResponse Api::abort_request(const HttpRequest& request) {
  const Json body = parse_body(request.body);
  JsonFields fields(body, "");
  const bool abort_all = fields.flag("abort_all", false);
  const std::string rid = fields.text("rid", "");
  const std::string message = fields.text("abort_message", "Abort by user");
  fields.refuse_unknown();
  if (abort_all == !rid.empty()) {
    throw HttpError(400, "either rid, which is not empty, or abort_all is expected", "rid");
  }
  service_.abort_prefix(rid, message);
  return text_response("");
}

HttpResponse Api::pause_generation(const HttpRequest& request) {
  const Json body = optional_body(request);
  JsonFields fields(body, "");
  const std::string mode = fields.text("mode", "abort");
  fields.refuse_unknown();
  if (mode == "abort") {
    service_.pause(PauseMode::kAbort);
  } else if (mode == "in_place") {
    service_.pause(PauseMode::kInPlace);
  } else if (mode == "retract") {
    service_.pause(PauseMode::kRetract);
  } else {
    fields.fail("mode", "abort, retract or in_place is expected", Json(mode));
  }
  return ok_message("Generation paused successfully.");
}

HttpResponse Api::continue_generation(const HttpRequest& request) {
  const Json body = optional_body(request);
  JsonFields fields(body, "");
  fields.ignore({"torch_empty_cache"});
  fields.refuse_unknown();
  service_.resume();
  return ok_message("Generation continued successfully.");
}

HttpResponse Api::release_memory(const HttpRequest& request) {
  const Json body = optional_body(request);
  const MemoryTags tags = read_memory_tags(body);
  if (tags.weights && !tags.is_default && !options_.release_weights) {
    throw HttpError(501, "this server cannot give its weights back", "tags");
  }
  ReleasedMemory released;
  const bool is_done = service_.run_without_states([&](Engine& engine) {
    released.resident_before = resident_bytes();
    if (tags.states) {
      released.state_bytes = engine.release_memory().state_bytes;
      states_are_away_ = true;
    }
    if (tags.weights && options_.release_weights && !weights_are_away_) {
      options_.release_weights();
      weights_are_away_ = true;
    }
    service_.hold(states_are_away_ || weights_are_away_);
    give_back_freed_memory();
    released.resident_after = resident_bytes();
  });
  if (!is_done) throw HttpError(400, kBusy);
  return json_response({{"success", true},
                        {"message", "Memory was released."},
                        {"state_bytes", released.state_bytes},
                        {"resident_bytes_before", released.resident_before},
                        {"resident_bytes_after", released.resident_after}});
}

HttpResponse Api::resume_memory(const HttpRequest& request) {
  const Json body = optional_body(request);
  const MemoryTags tags = read_memory_tags(body);
  service_.run([&](Engine& engine) {
    if (tags.weights && weights_are_away_) {
      options_.restore_weights();
      weights_are_away_ = false;
    }
    if (tags.states) {
      engine.take_memory();
      states_are_away_ = false;
    }
    service_.hold(states_are_away_ || weights_are_away_);
  });
  return outcome(true, "Memory is in use again.");
}

HttpResponse Api::update_weight_version(const HttpRequest& request) {
  const Json body = parse_body(request.body);
  JsonFields fields(body, "");
  const std::string version = fields.text("new_version", "");
  const bool abort_all = fields.flag("abort_all_requests", false);
  fields.refuse_unknown();
  if (version.empty()) throw HttpError(400, "new_version: a text is expected", "new_version");
  if (!service_.change_weights(version, abort_all, [] {})) return outcome(false, kBusy);
  return outcome(true, str_cat("the weights are called ", version, " now"));
}

HttpResponse Api::update_weights_from_disk(const HttpRequest& request) {
  const Json body = parse_body(request.body);
  JsonFields fields(body, "");
  const std::string directory = fields.text("model_path", "");
  const bool abort_all = fields.flag("abort_all_requests", false);
  const std::string version = fields.text("weight_version", service_.weight_version());
  const std::string format = fields.text("load_format", "auto");
  fields.refuse({"manifest", "is_async", "keep_pause", "token_step"}, "it is not built");
  fields.ignore({"torch_empty_cache", "recapture_cuda_graph", "flush_cache"});
  fields.refuse_unknown();
  if (directory.empty()) throw HttpError(400, "model_path: a text is expected", "model_path");
  if (format != "auto" && format != "safetensors") {
    fields.fail("load_format", "auto or safetensors is expected", Json(format));
  }
  if (options_.load_weights == nullptr) {
    throw HttpError(501, "this server cannot load other weights");
  }
  const auto load = [&] {
    options_.load_weights(directory);
    weights_are_away_ = false;
    service_.hold(states_are_away_);
  };
  try {
    if (!service_.change_weights(version, abort_all, load)) return outcome(false, kBusy);
  } catch (const UserError& e) {
    return outcome(false, e.what());
  }
  give_back_freed_memory();  // of the old weights
  const int64_t num_paused = service_.is_paused() ? service_.load().num_unfinished : 0;
  return outcome(true, "Succeeded to update model weights.", {{"num_paused_requests", num_paused}});
}

HttpResponse Api::get_weights_by_name(const HttpRequest& request) {
  const Json body = optional_body(request);
  JsonFields fields(body, "");
  const std::string name = fields.text("name", "");
  const int64_t limit = fields.integer("truncate_size", 100, 1, 1'000'000);
  fields.refuse_unknown();
  if (options_.weights == nullptr) throw HttpError(501, "this server has no weights to show");
  Json values = nullptr;
  service_.run([&](Engine&) {
    if (weights_are_away_) throw HttpError(400, kWeightsAreAway);
    for_each_parameter(*options_.weights, [&](const Parameter& p) {
      if (p.name != name || p.kind == ParameterKind::kTable) return;
      std::vector<float> all(static_cast<size_t>(p.numel()));
      p.get_row_major(all.data());
      values = Json::array();
      for (int64_t i = 0; i < std::min(limit, p.numel()); ++i) {
        values.push_back(static_cast<double>(all[static_cast<size_t>(i)]));
      }
    });
  });
  if (values.is_null()) {
    throw HttpError(400, str_cat("there is no parameter '", name.substr(0, 200), "'"), "name");
  }
  return json_response(values);
}

HttpResponse Api::weights_checker(const HttpRequest& request) {
  const Json body = optional_body(request);
  JsonFields fields(body, "");
  const std::string action = fields.text("action", "checksum");
  fields.refuse({"allow_quant_error", "skip_tensor_list", "selector"},
                "every tensor is compared, bit for bit");
  fields.refuse_unknown();
  if (options_.weights == nullptr) throw HttpError(501, "this server has no weights to check");
  if (action == "reset_tensors") {
    throw HttpError(501,
                    "weights are replaced whole by update_weights_from_disk, so there is "
                    "nothing to reset first",
                    "action");
  }
  if (action != "checksum" && action != "snapshot" && action != "compare") {
    fields.fail("action", "checksum, snapshot or compare is expected", Json(action));
  }
  Hashes now, snapshot;
  service_.run([&](Engine&) {
    if (weights_are_away_) throw HttpError(400, kWeightsAreAway);
    now = hashes_of(*options_.weights);
    if (action == "snapshot") weight_snapshot_ = now;
    snapshot = weight_snapshot_;
  });
  const std::string checksum = hash_of_all(now);
  Json more{{"ranks", Json::array({0})}, {"per_engine_checksum", Json::array({checksum})}};
  if (action != "compare") return outcome(true, checksum, std::move(more));
  if (snapshot.empty()) return outcome(false, "there is no snapshot to compare with");
  int64_t num_different = 0;
  std::string first;
  for (size_t i = 0; i < now.size(); ++i) {
    if (i < snapshot.size() && now[i] == snapshot[i]) continue;
    if (num_different++ == 0) first = now[i].first;
  }
  if (num_different == 0 && now.size() == snapshot.size()) {
    return outcome(true, str_cat("all ", now.size(), " tensors are as in the snapshot"), more);
  }
  return outcome(false,
                 str_cat(num_different, " of ", now.size(), " tensors differ, first ", first),
                 std::move(more));
}

HttpResponse Api::carries_pickles(const HttpRequest&) {
  throw HttpError(501,
                  "this body carries serialised Python objects, which the program does not run; "
                  "use update_weights_from_disk");
}

HttpResponse Api::needs_collectives(const HttpRequest&) {
  throw HttpError(
      501, "weights by collective communication are not built; use update_weights_from_disk");
}

HttpResponse Api::not_built(const HttpRequest&) { throw HttpError(501, "it is not built"); }

}  // namespace fathom
