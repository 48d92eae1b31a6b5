#include "fathom/base/json.h"

#include <set>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/file.h"

namespace fathom {

Json parse_json(std::string_view text, const std::string& origin) {
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  auto watch_keys = [&](int /*depth*/, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key &&
        !keys.back().insert(parsed.get<std::string>()).second && duplicate.empty()) {
      duplicate = parsed.get<std::string>();
    }
    return true;
  };
  Json value;
  try {
    value = Json::parse(text.begin(), text.end(), watch_keys);
  } catch (const Json::exception& e) {
    throw UserError(str_cat(origin, ": not valid JSON: ", e.what(),
                            "\n  fix: correct the text at that place"));
  }
  FATHOM_CHECK(duplicate.empty(), origin, ": the key \"", duplicate,
               "\" appears twice in one object\n  fix: remove one of the two");
  return value;
}

Json read_json_file(const std::string& path) { return parse_json(read_file(path), path); }

}  // namespace fathom
