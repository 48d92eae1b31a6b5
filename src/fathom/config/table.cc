#include "fathom/config/table.h"

#include <charconv>
#include <cmath>
#include <set>

#include "fathom/base/error.h"
#include "fathom/config/words.h"

namespace fathom::config {
namespace {

template <typename T>
bool holds(const Field& field) {
  return std::holds_alternative<T*>(field) || std::holds_alternative<std::optional<T>*>(field);
}

std::string number_text(double value) { return Json(value).dump(); }

std::string bound_text(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15
             ? std::to_string(static_cast<int64_t>(value))
             : number_text(value);
}

std::string check_bounds(const Option& option, double value) {
  const bool too_low = option.low && (option.low->inclusive ? value < option.low->value
                                                            : value <= option.low->value);
  const bool too_high = option.high && (option.high->inclusive ? value > option.high->value
                                                               : value >= option.high->value);
  return too_low || too_high ? str_cat("must be ", option.range_text()) : "";
}

std::string parse_bool(const std::string& word, bool* out) {
  std::string lower = word;
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (lower == "true" || lower == "1" || lower == "yes" || lower == "on")
    *out = true;
  else if (lower == "false" || lower == "0" || lower == "no" || lower == "off")
    *out = false;
  else
    return "must be true or false";
  return "";
}

std::string parse_number(const Option& option, const std::string& word, int64_t* out) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), *out);
  if (error == std::errc::result_out_of_range) return "does not fit 64 bits";
  if (error != std::errc() || end != word.data() + word.size()) return "must be a whole number";
  return check_bounds(option, static_cast<double>(*out));
}

std::string parse_number(const Option& option, const std::string& word, double* out) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), *out);
  if (error != std::errc() || end != word.data() + word.size() || !std::isfinite(*out))
    return "must be a number";
  return check_bounds(option, *out);
}

/// Assigns words to a field of any kind. Nothing is changed when an error is returned.
struct Assign {
  const Option& option;
  const std::vector<std::string>& words;

  std::string one_word() const {
    return words.size() == 1 ? "" : str_cat("takes one value, got ", words.size());
  }

  std::string operator()(std::monostate) const { return ""; }
  std::string operator()(bool* field) const {
    bool value = false;
    std::string problem = one_word();
    if (problem.empty()) problem = parse_bool(words[0], &value);
    if (problem.empty()) *field = value;
    return problem;
  }
  template <typename T>
  std::string operator()(
      T* field) const requires std::is_same_v<T, int64_t> || std::is_same_v<T, double> {
    T value{};
    std::string problem = one_word();
    if (problem.empty()) problem = parse_number(option, words[0], &value);
    if (problem.empty()) *field = value;
    return problem;
  }
  std::string operator()(std::string* field) const {
    const std::string problem = one_word();
    if (problem.empty()) *field = words[0];
    return problem;
  }
  template <typename T>
  std::string operator()(std::optional<T>* field) const {
    T value{};
    const std::string problem = (*this)(&value);
    if (problem.empty()) *field = std::move(value);
    return problem;
  }
  std::string operator()(std::vector<std::string>* field) const {
    *field = words;
    return "";
  }
  std::string operator()(std::vector<int64_t>* field) const {
    std::vector<int64_t> values;
    for (const std::string& word : words) {
      int64_t value = 0;
      const std::string problem = parse_number(option, word, &value);
      if (!problem.empty()) return problem;
      values.push_back(value);
    }
    *field = std::move(values);
    return "";
  }
  std::string operator()(const ChoiceField& field) const {
    const std::string problem = one_word();
    if (!problem.empty()) return problem;
    for (size_t i = 0; i < option.choices.size(); ++i) {
      if (option.choices[i] != words[0]) continue;
      field.set(i);
      return "";
    }
    std::string message = "must be one of";
    for (const std::string& choice : option.choices) message.append(" ").append(choice);
    const std::string nearest = nearest_word(words[0], option.choices);
    return nearest.empty() ? message : str_cat(message, "; did you mean ", nearest, "?");
  }
};

struct Read {
  const Option& option;
  Json operator()(std::monostate) const { return nullptr; }
  template <typename T>
  Json operator()(T* field) const {
    return *field;
  }
  template <typename T>
  Json operator()(std::optional<T>* field) const {
    return *field ? Json(**field) : Json(nullptr);
  }
  Json operator()(const ChoiceField& field) const {
    const std::optional<size_t> index = field.get();
    return index ? Json(option.choices[*index]) : Json(nullptr);
  }
};

}  // namespace

bool Option::is_bool() const { return holds<bool>(field); }

bool Option::is_list() const {
  return std::holds_alternative<std::vector<std::string>*>(field) ||
         std::holds_alternative<std::vector<int64_t>*>(field);
}

std::string Option::type_text() const {
  if (is_bool() || is_unbuilt()) return "";
  if (!choices.empty()) {
    std::string text = "[";
    for (const std::string& choice : choices)
      text.append(text.size() > 1 ? "|" : "").append(choice);
    return text.append("]");
  }
  if (holds<int64_t>(field)) return "INT";
  if (holds<double>(field)) return "FLOAT";
  if (std::holds_alternative<std::vector<int64_t>*>(field)) return "INT...";
  const std::string text = is_json ? "JSON" : is_path ? "PATH" : "TEXT";
  return is_list() && !one_word ? text + "..." : text;
}

std::string Option::range_text() const {
  std::string text;
  if (low) text = str_cat(low->inclusive ? "at least " : "above ", bound_text(low->value));
  if (high)
    text += str_cat(text.empty() ? "" : ", ", high->inclusive ? "at most " : "below ",
                    bound_text(high->value));
  return text;
}

Json Option::value() const { return std::visit(Read{*this}, field); }

std::string Option::set(const std::vector<std::string>& words) const {
  return std::visit(Assign{*this, words}, field);
}

std::string value_text(const Json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::string text;
  for (const Json& entry : value) text.append(text.empty() ? "" : " ").append(value_text(entry));
  return text;
}

std::string environment_name(const std::string& option_name) {
  std::string name = "MILES_SCRIPT_";
  for (const char c : option_name)
    name += static_cast<char>(c == '-' ? '_' : c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  return name;
}

OptionTable::OptionTable(Options& options) {
  describe_launch_options(*this, options);
  describe_bench_options(*this, options);
  describe_plan_options(*this, options);
  describe_hub_options(*this, options);
  describe_rollout_options(*this, options);
  describe_train_options(*this, options);
  describe_tool_options(*this, options);
  describe_serve_options(*this, options);
  describe_accepted_options(*this, options);
  describe_unbuilt_options(*this);
}

OptionTable::OptionTable(Command command, Options& options) : OptionTable(options) {
  std::erase_if(rows_, [&](const Option& row) { return !contains(row.commands, command); });
  std::set<std::string> names;
  for (const Option& row : rows_) {
    FATHOM_ASSERT(names.insert(row.name).second, "option --", row.name, " is described twice");
  }
  // Casts carry the names that the recipe's cast carries.
  if (contains(kPipeline, command)) options.convert.names = TensorNames::kSglang;
  // The page's recipe trains with seed 1234; a one-off command counts from 0.
  if (command == Command::kGenerate) options.train.seed = 0;
}

OptionTable OptionTable::all(Options& options) { return OptionTable(options); }

const Option* OptionTable::find(const std::string& name) const {
  for (const Option& row : rows_)
    if (row.name == name || (row.name.starts_with("sglang-") && row.name.substr(7) == name))
      return &row;
  return nullptr;
}

void OptionTable::group(std::string name, CommandSet commands) {
  group_ = std::move(name);
  commands_ = commands;
}

Option& OptionTable::add(const std::string& name, Field field, std::string help) {
  Option row;
  row.name = name;
  row.group = group_;
  row.help = std::move(help);
  row.field = std::move(field);
  row.commands = commands_;
  rows_.push_back(std::move(row));
  return rows_.back();
}

void OptionTable::add_unbuilt(const std::vector<std::string>& names, const std::string& sentence) {
  for (const std::string& name : names)
    add(name, std::monostate(), "").built_only({}, sentence).not_hashed();
}

}  // namespace fathom::config
