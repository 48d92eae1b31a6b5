// The table of options: one row says everything there is to say about an option, and parsing, help,
// printing, JSON and the hash all walk the rows. A row is bound to its field in an Options object,
// whose initialiser is the default.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "fathom/base/json.h"
#include "fathom/config/command.h"
#include "fathom/config/options.h"

namespace fathom::config {

/// An enum field, seen through the indices of Option::choices.
struct ChoiceField {
  std::function<void(std::optional<size_t>)> set;
  std::function<std::optional<size_t>()> get;
};

using Field =
    std::variant<std::monostate, bool*, std::optional<bool>*, int64_t*, std::optional<int64_t>*,
                 double*, std::optional<double>*, std::string*, std::optional<std::string>*,
                 std::vector<std::string>*, std::vector<int64_t>*, ChoiceField>;

struct Bound {
  double value;
  bool inclusive;
};

struct Option {
  std::string name;  // long name without dashes
  std::string group, help;
  Field field;                       // monostate: a feature that is not built at all
  std::vector<std::string> choices;  // of an enum
  CommandSet commands = kAllCommands;
  CommandSet required_by = 0;
  std::optional<Bound> low, high;  // of numbers and of every entry of a list of numbers
  bool is_path = false;
  bool is_json = false;         // text that holds a JSON object
  bool one_word = false;        // a list that takes one entry each time it is given
  bool takes_any_word = false;  // the next word is the value whatever it looks like
  bool is_positional = false;   // may also be given without its name
  bool in_hash = true;
  bool is_planned = false;                // plan and --dry-run take every value, built or not
  bool in_environment = true;             // may be set by its environment variable
  std::vector<std::string> built_values;  // when `refusal` is set: the values that are built
  CommandSet all_built_for = 0;           // subcommands in which every value is
  std::string refusal;                    // sentence for any other value
  std::string no_effect;                  // sentence for an option that changes nothing here

  // How a row is written: table.add("lr", &o.lr, "learning rate").above(0);
  Option& at_least(double v) { return low = Bound{v, true}, *this; }
  Option& above(double v) { return low = Bound{v, false}, *this; }
  Option& at_most(double v) { return high = Bound{v, true}, *this; }
  Option& below(double v) { return high = Bound{v, false}, *this; }
  Option& for_commands(CommandSet set) { return commands = set, *this; }
  Option& required_for(CommandSet set) { return required_by = set, *this; }
  Option& path() { return is_path = true, *this; }
  Option& json() { return is_json = true, *this; }
  Option& one_word_each() { return one_word = true, *this; }
  Option& any_word() { return takes_any_word = true, *this; }
  Option& positional() { return is_positional = true, *this; }
  Option& not_hashed() { return in_hash = false, *this; }
  /// For a name that means something else to other subcommands.
  Option& not_in_environment() { return in_environment = false, *this; }
  /// Other values are refused with the sentence.
  Option& built_only(std::vector<std::string> values, std::string sentence) {
    built_values = std::move(values);
    refusal = std::move(sentence);
    return *this;
  }
  /// In these subcommands no value is refused.
  Option& all_values_for(CommandSet set) { return all_built_for = set, *this; }
  /// What is planned on paper takes every value.
  Option& planned() { return is_planned = true, *this; }
  Option& without_effect(std::string sentence) { return no_effect = std::move(sentence), *this; }

  bool is_bool() const;
  bool is_list() const;
  bool is_unbuilt() const { return std::holds_alternative<std::monostate>(field); }
  /// "INT", "FLOAT", "TEXT", "PATH", "[a|b]", "INT..."; empty for a switch.
  std::string type_text() const;
  /// "at least 1", "above 0, at most 1"; empty without bounds.
  std::string range_text() const;
  /// The current value; null when unset.
  Json value() const;
  /// Sets the field. @return what is wrong with the words, or "".
  std::string set(const std::vector<std::string>& words) const;
};

/// A value as people write it: text without quotes, lists joined by blanks, "" for null.
std::string value_text(const Json& value);

/// MILES_SCRIPT_ROLLOUT_BATCH_SIZE of "rollout-batch-size".
std::string environment_name(const std::string& option_name);

template <typename E>
struct Choice {
  std::string name;
  E value;
};

class OptionTable {
 public:
  /// The rows that `command` takes, bound to `options`, whose fields hold the defaults.
  OptionTable(Command command, Options& options);

  /// The rows of every subcommand, for telling a foreign option from an unknown one.
  static OptionTable all(Options& options);

  const std::vector<Option>& rows() const& { return rows_; }
  const std::vector<Option>& rows() && = delete;
  /// By name; engine options ("sglang-page-size") also without "sglang-". Null when there is none.
  const Option* find(const std::string& name) const;

  // For the table_*.cc files, which describe the rows.
  /// Group and subcommands of the rows that follow.
  void group(std::string name, CommandSet commands);
  Option& add(const std::string& name, Field field, std::string help);
  template <typename E>
  Option& add_choice(const std::string& name, E* field, std::vector<Choice<E>> choices,
                     std::string help);
  template <typename E>
  Option& add_choice(const std::string& name, std::optional<E>* field,
                     std::vector<Choice<E>> choices, std::string help);
  /// Options whose feature is not built at all; `sentence` says so.
  void add_unbuilt(const std::vector<std::string>& names, const std::string& sentence);

 private:
  explicit OptionTable(Options& options);
  std::vector<Option> rows_;
  std::string group_;
  CommandSet commands_ = kAllCommands;
};

// One file each.
void describe_launch_options(OptionTable& table, Options& options);    // table_launch.cc
void describe_bench_options(OptionTable& table, Options& options);     // table_bench.cc
void describe_plan_options(OptionTable& table, Options& options);      // table_plan.cc
void describe_hub_options(OptionTable& table, Options& options);       // table_hub.cc
void describe_rollout_options(OptionTable& table, Options& options);   // table_rollout.cc
void describe_train_options(OptionTable& table, Options& options);     // table_train.cc
void describe_tool_options(OptionTable& table, Options& options);      // table_tools.cc
void describe_serve_options(OptionTable& table, Options& options);     // table_serve.cc
void describe_accepted_options(OptionTable& table, Options& options);  // table_accepted.cc
void describe_unbuilt_options(OptionTable& table);                     // table_unbuilt.cc

template <typename E>
Option& OptionTable::add_choice(const std::string& name, E* field, std::vector<Choice<E>> choices,
                                std::string help) {
  ChoiceField access;
  access.set = [field, choices](std::optional<size_t> i) { *field = choices[i.value()].value; };
  access.get = [field, choices]() -> std::optional<size_t> {
    for (size_t i = 0; i < choices.size(); ++i)
      if (choices[i].value == *field) return i;
    return std::nullopt;
  };
  Option& row = add(name, std::move(access), std::move(help));
  for (const Choice<E>& choice : choices) row.choices.push_back(choice.name);
  return row;
}

template <typename E>
Option& OptionTable::add_choice(const std::string& name, std::optional<E>* field,
                                std::vector<Choice<E>> choices, std::string help) {
  ChoiceField access;
  access.set = [field, choices](std::optional<size_t> i) {
    if (i)
      *field = choices[*i].value;
    else
      field->reset();
  };
  access.get = [field, choices]() -> std::optional<size_t> {
    for (size_t i = 0; i < choices.size(); ++i)
      if (*field == choices[i].value) return i;
    return std::nullopt;
  };
  Option& row = add(name, std::move(access), std::move(help));
  for (const Choice<E>& choice : choices) row.choices.push_back(choice.name);
  return row;
}

}  // namespace fathom::config
