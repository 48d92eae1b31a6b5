// Answers as /generate tells them.
#pragma once

#include <string>

#include "fathom/server/engine_service.h"
#include "fathom/server/generate_call.h"

namespace fathom {

/// {"text", "output_ids", "meta_info"} of a finished sample.
Json generate_answer_json(const GenerateItem& item, const std::string& rid, const Answer& answer,
                          const std::string& text, const ServedModel& model);

/// The same of one under way: finish_reason is null, and what is known at the end is left out.
/// @param so_far  token_ids, log_probs and lists.
Json generate_progress_json(const GenerateItem& item, const std::string& rid,
                            const Completion& so_far, const std::string& text,
                            const std::string& weight_version, const ServedModel& model);

/// {"type": "stop", "matched": ...} and so on.
Json finish_reason_json(const Answer& answer);

std::string base64(const void* data, size_t size);

}  // namespace fathom
