// The grade-school mathematics set, as its authors publish it: {"question", "answer"}, where the
// answer is worked out and its last line is "#### 72".
#pragma once

#include <string>

#include "fathom/base/json.h"
#include "fathom/data/prompt.h"

namespace fathom {

/// What stands behind the last "#### ", without blanks and thousands' commas; empty when there is
/// no such mark.
std::string gsm8k_final_answer(const std::string& answer);

/// A row in that form gets what `options` look for: the field input_key as one user message that
/// holds the question, and the final answer as the label, also where label_key names the worked-out
/// answer and the label is for grading. Other rows stay as they are.
void complete_gsm8k_row(const PromptFileOptions& options, Json* row);

}  // namespace fathom
