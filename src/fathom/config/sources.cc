#include "fathom/config/sources.h"

#include <algorithm>
#include <map>

#include "fathom/base/error.h"
#include "fathom/config/words.h"

namespace fathom::config {
namespace {

/// A row, and whether the name was its --no- form.
struct Match {
  const Option* row = nullptr;
  bool is_negated = false;
};

Match match(const OptionTable& table, const std::string& name) {
  if (const Option* row = table.find(name)) return {row, false};
  if (name.starts_with("no-"))
    if (const Option* row = table.find(name.substr(3)); row != nullptr && row->is_bool())
      return {row, true};
  return {};
}

std::vector<std::string> known_names(const OptionTable& table) {
  std::vector<std::string> names;
  for (const Option& row : table.rows()) {
    if (row.is_unbuilt()) continue;
    names.push_back(row.name);
    if (row.name.starts_with("sglang-")) names.push_back(row.name.substr(7));
    if (row.is_bool()) names.push_back("no-" + row.name);
  }
  return names;
}

/// Rows of all subcommands, kept with the options they are bound to.
struct AllRows {
  Options options;
  OptionTable table = OptionTable::all(options);
};

/// "unknown option --x; did you mean --y?", or whose option it is.
std::string unknown_option(const OptionTable& table, const std::string& name) {
  const AllRows all;
  if (const Option* row = match(all.table, name).row) {
    std::string commands;
    for (const CommandInfo& info : all_commands())
      if (contains(row->commands, info.command)) commands += " " + info.name;
    return str_cat("--", name, " is not an option of this subcommand, but of:", commands);
  }
  const std::string nearest = nearest_word(name, known_names(table));
  return str_cat("unknown option --", name,
                 nearest.empty() ? std::string() : str_cat("; did you mean --", nearest, "?"));
}

class WordReader {
 public:
  WordReader(const OptionTable& table, const std::vector<std::string>& words, Source source,
             std::vector<std::string>* problems)
      : table_(table), words_(words), source_(source), problems_(*problems) {}

  Assignments read() {
    while (next_ < words_.size()) {
      const std::string& word = words_[next_];
      if (word.size() > 2 && word.starts_with("--"))
        read_option(word);
      else
        read_positional(word);
    }
    return std::move(assignments_);
  }

 private:
  void read_positional(const std::string& word) {
    ++next_;
    // In the order of the rows; the last one takes the rest when it is a list.
    const Option* last = nullptr;
    for (const Option& row : table_.rows()) {
      if (!row.is_positional) continue;
      last = &row;
      if (row.is_list() || !is_assigned(row)) break;
    }
    if (last != nullptr) return add(last, {word}, "--" + last->name);
    problems_.push_back(str_cat("'", word, "' stands alone; options begin with --"));
  }

  void read_option(const std::string& word) {
    ++next_;
    const size_t equals = word.find('=');
    const std::string name = word.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Match m = match(table_, name);
    if (m.row == nullptr) {
      problems_.push_back(unknown_option(table_, name));
      // Its values, if it has any, are not a second mistake.
      while (equals == std::string::npos && next_is_value()) ++next_;
      return;
    }
    const std::string origin = "--" + name;
    std::vector<std::string> values;
    if (equals != std::string::npos) values.push_back(word.substr(equals + 1));
    if (m.row->is_unbuilt()) {
      while (equals == std::string::npos && next_is_value()) ++next_;
    } else if (m.row->is_bool()) {
      if (values.empty())
        values.push_back(m.is_negated ? "false" : "true");
      else if (m.is_negated)
        return problems_.push_back(str_cat(origin, " takes no value, got '", values[0], "'"));
    } else if (equals == std::string::npos) {
      if (next_is_value() || (m.row->takes_any_word && next_ < words_.size()))
        values.push_back(words_[next_++]);
      while (m.row->is_list() && !m.row->one_word && next_is_value())
        values.push_back(words_[next_++]);
      if (values.empty()) return problems_.push_back(str_cat(origin, " needs a value"));
    }
    add(m.row, std::move(values), origin);
  }

  /// A word is a value unless it is the name of an option; "--" and "-1" are values.
  bool next_is_value() const {
    if (next_ >= words_.size()) return false;
    const std::string& word = words_[next_];
    return word.size() <= 2 || !word.starts_with("--");
  }

  bool is_assigned(const Option& row) const {
    return std::any_of(assignments_.begin(), assignments_.end(),
                       [&](const Assignment& a) { return a.row == &row; });
  }

  void add(const Option* row, std::vector<std::string> values, const std::string& origin) {
    const auto before = std::find_if(assignments_.begin(), assignments_.end(),
                                     [&](const Assignment& a) { return a.row == row; });
    if (before == assignments_.end()) {
      assignments_.push_back({row, std::move(values), source_, origin});
    } else if (row->one_word) {
      before->words.insert(before->words.end(), values.begin(), values.end());
    } else if (source_ == Source::kExtraArgs) {
      before->words = std::move(values);
    } else {
      problems_.push_back(str_cat(origin, " is given twice; the first time as '",
                                  value_text(before->words), "', then as '", value_text(values),
                                  "'"));
    }
  }

  const OptionTable& table_;
  const std::vector<std::string>& words_;
  const Source source_;
  std::vector<std::string>& problems_;
  size_t next_ = 0;
  Assignments assignments_;
};

/// The words that stand for a JSON value of a recipe; a problem when its type is not the option's.
std::vector<std::string> words_of(const Option& row, const Json& value, std::string* problem) {
  const std::string type = row.type_text();
  const auto has_type = [&](const Json& entry, const std::string& entry_type) {
    if (row.is_bool()) return entry.is_boolean();
    if (entry_type.starts_with("INT")) return entry.is_number_integer();
    if (entry_type == "FLOAT") return entry.is_number();
    if (row.is_json && entry.is_object()) return true;
    return entry.is_string();
  };
  const auto text = [](const Json& entry) {
    return entry.is_string() ? entry.get<std::string>() : entry.dump();
  };
  if (!row.is_list()) {
    if (!has_type(value, type))
      *problem = str_cat("must be ", row.is_bool() ? "true or false" : type);
    return {text(value)};
  }
  std::vector<std::string> words;
  if (!value.is_array()) *problem = "must be a list";
  for (const Json& entry : value) {
    if (!has_type(entry, type)) *problem = str_cat("must be a list of ", type);
    words.push_back(text(entry));
  }
  return words;
}

}  // namespace

Assignments read_words(const OptionTable& table, const std::vector<std::string>& words,
                       Source source, std::vector<std::string>* problems) {
  return WordReader(table, words, source, problems).read();
}

Assignments read_environment(const OptionTable& table, const Environment& environment,
                             std::vector<std::string>* problems) {
  static const std::string kPrefix = "MILES_SCRIPT_";
  // About a cluster manager that is not used here: whatever they say is so.
  static const std::vector<std::string> kOther = {"MILES_SCRIPT_EXTERNAL_RAY",
                                                  "MILES_SCRIPT_ENABLE_RAY_SUBMIT"};
  const AllRows all;
  std::map<std::string, const Option*> rows, all_rows;
  const auto index = [](const OptionTable& from, std::map<std::string, const Option*>* to) {
    for (const Option& row : from.rows()) {
      if (!row.in_environment) continue;
      (*to)[environment_name(row.name)] = &row;
      if (row.name.starts_with("sglang-"))
        to->emplace(environment_name(row.name.substr(7)), &row);  // an own name comes first
    }
  };
  index(table, &rows);
  index(all.table, &all_rows);

  Assignments assignments;
  for (auto it = environment.lower_bound(kPrefix);
       it != environment.end() && it->first.starts_with(kPrefix); ++it) {
    const auto& [name, value] = *it;
    if (value.empty() || std::find(kOther.begin(), kOther.end(), name) != kOther.end()) continue;
    if (const auto row = rows.find(name); row != rows.end()) {
      std::vector<std::string> words = {value};
      if (row->second->is_list()) try {
          words = split_words(value);
        } catch (const ConfigError& e) {
          problems->push_back(str_cat(name, ": ", e.what()));
        }
      assignments.push_back({row->second, std::move(words), Source::kEnvironment, name});
    } else if (all_rows.count(name) == 0) {
      std::vector<std::string> names;
      for (const auto& [known, unused] : rows) names.push_back(known);
      const std::string nearest = nearest_word(name, names);
      problems->push_back(str_cat("unknown environment variable ", name,
                                  nearest.empty() ? "" : "; did you mean ", nearest,
                                  nearest.empty() ? "" : "?"));
    }
  }
  return assignments;
}

Assignments read_recipe(const OptionTable& table, const std::string& path,
                        std::vector<std::string>* problems) {
  Json recipe;
  try {
    recipe = read_json_file(path);
  } catch (const UserError& e) {
    problems->push_back(str_cat("--config: ", e.what()));
    return {};
  }
  if (!recipe.is_object()) {
    problems->push_back(str_cat(path, ": a recipe is a JSON object of option names and values"));
    return {};
  }
  const AllRows all;
  Assignments assignments;
  for (const auto& [key, value] : recipe.items()) {
    if (key == "description") continue;
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', '-');
    const std::string origin = str_cat(path, ": ", key);
    const Option* row = table.find(name);
    if (row == nullptr) {
      if (all.table.find(name) != nullptr) continue;  // of another subcommand
      std::vector<std::string> names;
      for (const Option& known : all.table.rows()) names.push_back(known.name);
      const std::string nearest = nearest_word(name, names);
      problems->push_back(
          str_cat(path, ": unknown option \"", key, "\"",
                  nearest.empty() ? std::string() : str_cat("; did you mean \"", nearest, "\"?")));
      continue;
    }
    if (row->name == "config") {
      problems->push_back(str_cat(origin, ": a recipe cannot name another recipe"));
      continue;
    }
    if (std::any_of(assignments.begin(), assignments.end(),
                    [&](const Assignment& a) { return a.row == row; })) {
      problems->push_back(str_cat(origin, ": --", row->name, " is given twice"));
      continue;
    }
    if (value.is_null()) continue;
    std::string problem;
    std::vector<std::string> words = row->is_unbuilt() ? std::vector<std::string>{value.dump()}
                                                       : words_of(*row, value, &problem);
    if (!problem.empty()) {
      problems->push_back(str_cat(origin, " ", problem, ", got ", value.dump()));
      continue;
    }
    assignments.push_back({row, std::move(words), Source::kRecipe, origin});
  }
  return assignments;
}

}  // namespace fathom::config
