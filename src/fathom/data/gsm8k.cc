#include "fathom/data/gsm8k.h"

#include <algorithm>

namespace fathom {

std::string gsm8k_final_answer(const std::string& answer) {
  const size_t mark = answer.rfind("#### ");
  if (mark == std::string::npos) return "";
  std::string text = answer.substr(mark + 5);
  std::erase_if(text, [](char c) { return c == ',' || c == ' ' || c == '\n' || c == '\r'; });
  return text;
}

void complete_gsm8k_row(const PromptFileOptions& options, Json* row) {
  const auto text = [&](const char* key) {
    return row->is_object() && row->contains(key) && (*row)[key].is_string()
               ? (*row)[key].get<std::string>()
               : "";
  };
  const std::string question = text("question"), final_answer = gsm8k_final_answer(text("answer"));
  if (question.empty() || final_answer.empty()) return;
  if (!row->contains(options.input_key))
    (*row)[options.input_key] = Json::array({Json{{"role", "user"}, {"content", question}}});
  if (!options.label_key.empty() && (!row->contains(options.label_key) ||
                                     (options.label_key == "answer" && options.label_is_graded)))
    (*row)[options.label_key] = final_answer;
}

}  // namespace fathom
