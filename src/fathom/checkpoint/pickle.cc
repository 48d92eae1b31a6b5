#include "fathom/checkpoint/pickle.h"

#include <bit>
#include <utility>

#include "fathom/base/error.h"
#include "fathom/checkpoint/pickle_names.h"

namespace fathom {
namespace {

constexpr size_t kMaxString = 1 << 20;
constexpr size_t kMaxStack = 8 << 20;
constexpr int kMaxDepth = 128;
constexpr uint32_t kNone = PickleNode::kNoNode;

size_t max_input(PickleFile file) {
  switch (file) {
    case PickleFile::kTensor:
      return 64 << 10;
    case PickleFile::kMetadata:
      return 256 << 20;
    case PickleFile::kCommon:
      return 16 << 20;
  }
  return 0;
}

}  // namespace

// One pass over the opcodes with a stack of node indices; never recursive, so depth costs nothing.
class PickleReader {
 public:
  PickleReader(std::string_view bytes, PickleFile file, Pickle* out)
      : bytes_(bytes), file_(file), out_(*out) {}

  void run() {
    if (bytes_.size() > max_input(file_)) {
      bad("it has ", bytes_.size(), " bytes, at most ", max_input(file_), " are allowed");
    }
    if (byte() != 0x80) bad("it does not start with a protocol number");
    const int protocol = byte();
    if (protocol < 2 || protocol > 5) bad("protocol ", protocol, " (2 to 5 are supported)");
    while (step()) {
    }
    if (at_ != bytes_.size()) bad(bytes_.size() - at_, " bytes after its end");
  }

 private:
  template <typename... Parts>
  [[noreturn]] void bad(const Parts&... parts) const {
    out_.fail(str_cat(parts..., " (byte ", at_, ")"));
  }

  int byte() {
    if (at_ >= bytes_.size()) bad("it is cut off");
    return static_cast<uint8_t>(bytes_[at_++]);
  }
  std::string_view take(uint64_t n) {
    if (n > bytes_.size() - at_) bad("it is cut off");
    const std::string_view part = bytes_.substr(at_, n);
    at_ += n;
    return part;
  }
  uint64_t number(int num_bytes) {
    uint64_t v = 0;
    const std::string_view part = take(static_cast<uint64_t>(num_bytes));
    for (size_t i = 0; i < part.size(); ++i) {
      v |= static_cast<uint64_t>(static_cast<uint8_t>(part[i])) << (8 * i);
    }
    return v;
  }
  std::string text(uint64_t n) {
    if (n > kMaxString) bad("a string of ", n, " bytes, at most ", kMaxString, " are allowed");
    return std::string(take(n));
  }
  std::string line() {
    std::string s;
    for (;;) {
      const char c = static_cast<char>(byte());
      if (c == '\n') return s;
      if (s.size() >= 256) bad("a name of more than 256 characters");
      s.push_back(c);
    }
  }

  PickleNode& make(PickleKind kind) {
    if (out_.nodes_.size() >= kMaxStack) bad("more than ", kMaxStack, " objects");
    out_.nodes_.emplace_back();
    out_.nodes_.back().kind = kind;
    push(static_cast<uint32_t>(out_.nodes_.size() - 1));
    return out_.nodes_.back();
  }
  void push(uint32_t index) {
    if (stack_.size() >= kMaxStack) bad("more than ", kMaxStack, " objects on its stack");
    stack_.push_back(index);
  }
  // Objects above the last mark may be popped, none below.
  uint32_t pop() {
    if (stack_.size() <= floor()) bad("an operation without its operand");
    const uint32_t index = stack_.back();
    stack_.pop_back();
    return index;
  }
  uint32_t top() {
    if (stack_.size() <= floor()) bad("an operation without its operand");
    return stack_.back();
  }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<uint32_t> pop_to_mark() {
    if (marks_.empty()) bad("an operation without its mark");
    std::vector<uint32_t> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()),
                                stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }

  void push_global(const std::string& module, const std::string& name) {
    std::string m = module;
    if (m == "__builtin__") m = "builtins";
    if (m == "copy_reg") m = "copyreg";
    for (const std::string& word : {m, name}) {
      if (word.empty() || word.size() > 256) bad("a name of ", word.size(), " characters");
      for (char c : word) {
        if (!(('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') ||
              c == '_' || c == '.')) {
          bad("a name with a character that is not allowed");
        }
      }
    }
    const std::string full = m + " " + name;
    if (is_hostile_global(full)) {
      bad("it is hostile: it asks for ", m, ".", name, ". Do not open it with any program");
    }
    if (!is_known_global(full, file_)) {
      bad("it names ", m, ".", name, ", which files of this kind may not");
    }
    make(PickleKind::kGlobal).text = full;
  }

  void memoize(uint64_t index) {
    if (index >= kMaxStack) bad("memo entry ", index);
    if (memo_.size() <= index) {
      if (index > memo_.size() + bytes_.size()) bad("memo entry ", index);
      memo_.resize(index + 1, kNone);
    }
    memo_[index] = top();
    next_memo_ = std::max(next_memo_, index + 1);
  }
  void recall(uint64_t index) {
    if (index >= memo_.size() || memo_[index] == kNone) bad("memo entry ", index, " is not set");
    push(memo_[index]);
  }

  PickleNode& container(uint32_t index, PickleKind kind, const char* what) {
    PickleNode& n = out_.nodes_[index];
    if (n.kind != kind && n.kind != PickleKind::kCall && n.kind != PickleKind::kObject) {
      bad(what, " on something else");
    }
    return n;
  }
  void check_key(uint32_t index) {
    const PickleNode& key = out_.nodes_[index];
    const bool built_object = key.kind == PickleKind::kObject && key.state != kNone;
    if (key.kind != PickleKind::kString && key.kind != PickleKind::kInt &&
        key.kind != PickleKind::kBool && !built_object) {
      bad("a dict key of a kind that is not allowed");
    }
  }
  void set_items(uint32_t dict, const std::vector<uint32_t>& items) {
    if (items.size() % 2 != 0) bad("a dict key without its value");
    for (size_t i = 0; i < items.size(); i += 2) check_key(items[i]);
    PickleNode& n = container(dict, PickleKind::kDict, "SETITEM");
    n.items.insert(n.items.end(), items.begin(), items.end());
  }
  void add_items(uint32_t list, PickleKind kind, const std::vector<uint32_t>& items) {
    PickleNode& n = container(list, kind, "APPEND");
    n.items.insert(n.items.end(), items.begin(), items.end());
  }
  void tuple(size_t size) {
    std::vector<uint32_t> items(size);
    for (size_t i = size; i-- > 0;) items[i] = pop();
    make(PickleKind::kTuple).items = std::move(items);
  }
  void call(PickleKind kind) {
    const uint32_t arguments = pop(), callee = pop();
    if (out_.nodes_[callee].kind != PickleKind::kGlobal) bad("a call of something without a name");
    if (out_.nodes_[arguments].kind != PickleKind::kTuple) bad("a call without a tuple");
    PickleNode& n = make(kind);
    n.callee = callee;
    n.arguments = arguments;
  }
  void long_integer(uint64_t size) {
    if (size > 16) bad("an integer of ", size, " bytes");
    const std::string_view part = take(size);
    const bool negative = !part.empty() && (static_cast<uint8_t>(part.back()) & 0x80) != 0;
    uint64_t v = negative ? ~uint64_t{0} : 0;
    for (size_t i = 0; i < part.size(); ++i) {
      const auto b = static_cast<uint8_t>(part[i]);
      if (i < 8) {
        v &= ~(uint64_t{0xFF} << (8 * i));
        v |= static_cast<uint64_t>(b) << (8 * i);
      } else if (b != (negative ? 0xFF : 0)) {
        bad("an integer of more than 64 bits");
      }
    }
    if (part.size() >= 8 && (static_cast<int64_t>(v) < 0) != negative) {
      bad("an integer of more than 64 bits");
    }
    make(PickleKind::kInt).integer = static_cast<int64_t>(v);
  }

  bool step() {
    const int code = byte();
    switch (code) {
      case '.': {
        out_.root_ = pop();
        if (!stack_.empty() || !marks_.empty()) bad("objects left on its stack");
        return false;
      }
      case 0x95:  // FRAME
        if (number(8) > bytes_.size() - at_) bad("a frame longer than the file");
        break;
      case '(':
        if (marks_.size() >= kMaxStack) bad("too many marks");
        marks_.push_back(stack_.size());
        break;
      case 'N':
        make(PickleKind::kNone);
        break;
      case 0x88:
      case 0x89:
        make(PickleKind::kBool).integer = code == 0x88;
        break;
      case 'J': {
        const auto v = static_cast<int32_t>(number(4));
        make(PickleKind::kInt).integer = v;
        break;
      }
      case 'K': {
        const uint64_t v = number(1);
        make(PickleKind::kInt).integer = static_cast<int64_t>(v);
        break;
      }
      case 'M': {
        const uint64_t v = number(2);
        make(PickleKind::kInt).integer = static_cast<int64_t>(v);
        break;
      }
      case 0x8a:
        long_integer(number(1));
        break;
      case 0x8b:
        long_integer(number(4));
        break;
      case 'G': {
        uint64_t v = 0;
        for (char c : take(8)) v = v << 8 | static_cast<uint8_t>(c);
        make(PickleKind::kFloat).real = std::bit_cast<double>(v);
        break;
      }
      case 'X':
        push_text(PickleKind::kString, number(4));
        break;
      case 0x8c:
        push_text(PickleKind::kString, number(1));
        break;
      case 0x8d:
        push_text(PickleKind::kString, number(8));
        break;
      case 'U':
        push_text(PickleKind::kString, number(1));
        break;
      case 'C':
        push_text(PickleKind::kBytes, number(1));
        break;
      case 'B':
        push_text(PickleKind::kBytes, number(4));
        break;
      case 0x8e:
        push_text(PickleKind::kBytes, number(8));
        break;
      case ')':
        make(PickleKind::kTuple);
        break;
      case 't': {
        std::vector<uint32_t> items = pop_to_mark();
        make(PickleKind::kTuple).items = std::move(items);
        break;
      }
      case 0x85:
      case 0x86:
      case 0x87:
        tuple(static_cast<size_t>(code - 0x84));
        break;
      case ']':
        make(PickleKind::kList);
        break;
      case 'a': {
        const uint32_t item = pop();
        add_items(top(), PickleKind::kList, {item});
        break;
      }
      case 'e': {
        const std::vector<uint32_t> items = pop_to_mark();
        add_items(top(), PickleKind::kList, items);
        break;
      }
      case '}':
        make(PickleKind::kDict);
        break;
      case 's': {
        const uint32_t value = pop(), key = pop();
        set_items(top(), {key, value});
        break;
      }
      case 'u': {
        const std::vector<uint32_t> items = pop_to_mark();
        set_items(top(), items);
        break;
      }
      case 0x8f:
        make(PickleKind::kSet);
        break;
      case 0x90: {
        const std::vector<uint32_t> items = pop_to_mark();
        add_items(top(), PickleKind::kSet, items);
        break;
      }
      case 'c': {
        const std::string module = line();
        push_global(module, line());
        break;
      }
      case 0x93: {
        const uint32_t name = pop(), module = pop();
        if (out_.nodes_[name].kind != PickleKind::kString ||
            out_.nodes_[module].kind != PickleKind::kString) {
          bad("a global whose name is not a string");
        }
        push_global(std::string(out_.nodes_[module].text), std::string(out_.nodes_[name].text));
        break;
      }
      case 'R':
        call(PickleKind::kCall);
        break;
      case 0x81:
        call(PickleKind::kObject);
        break;
      case 'b': {
        const uint32_t state = pop();
        PickleNode& n = container(top(), PickleKind::kObject, "BUILD");
        if (n.state != kNone) bad("an object that is built twice");
        n.state = state;
        break;
      }
      case 'q':
        memoize(number(1));
        break;
      case 'r':
        memoize(number(4));
        break;
      case 0x94:
        memoize(next_memo_);
        break;
      case 'h':
        recall(number(1));
        break;
      case 'j':
        recall(number(4));
        break;
      case 'Q': {
        if (file_ == PickleFile::kMetadata) bad("a persistent id in a file that has none");
        const uint32_t id = pop();
        const PickleNode& n = out_.nodes_[id];
        if (n.kind != PickleKind::kTuple || n.items.empty() ||
            out_.nodes_[n.items[0]].text != "storage") {
          bad("a persistent id that is not a storage");
        }
        make(PickleKind::kPersistent).arguments = id;
        break;
      }
      default:
        bad("opcode ", code, ", which is not allowed");
    }
    return true;
  }

  void push_text(PickleKind kind, uint64_t size) {
    std::string s = text(size);
    make(kind).text = std::move(s);
  }

  std::string_view bytes_;
  PickleFile file_;
  Pickle& out_;
  size_t at_ = 0;
  std::vector<uint32_t> stack_, memo_;
  std::vector<size_t> marks_;
  uint64_t next_memo_ = 0;
};

Pickle Pickle::decode(std::string_view bytes, PickleFile file, const std::string& origin) {
  Pickle pickle;
  pickle.origin_ = origin;
  PickleReader(bytes, file, &pickle).run();
  return pickle;
}

void Pickle::fail(std::string_view what) const {
  throw UserError(str_cat(origin_, ": the pickle cannot be used: ", what));
}

const PickleNode& Pickle::expect(uint32_t index, PickleKind kind, std::string_view what) const {
  if (index >= nodes_.size() || nodes_[index].kind != kind) {
    fail(str_cat(what, " is missing or not of the expected kind"));
  }
  return nodes_[index];
}

int64_t Pickle::integer(uint32_t index, std::string_view what) const {
  return expect(index, PickleKind::kInt, what).integer;
}

const std::string& Pickle::string(uint32_t index, std::string_view what) const {
  return expect(index, PickleKind::kString, what).text;
}

bool Pickle::is_global(uint32_t index, std::string_view module_and_name) const {
  return index < nodes_.size() && nodes_[index].kind == PickleKind::kGlobal &&
         nodes_[index].text == module_and_name;
}

std::vector<int64_t> Pickle::integers(uint32_t index, std::string_view what) const {
  std::vector<int64_t> values;
  for (uint32_t item : expect(index, PickleKind::kTuple, what).items) {
    values.push_back(integer(item, what));
  }
  return values;
}

uint32_t Pickle::find(const PickleNode& dict, std::string_view key) const {
  uint32_t found = kNone;  // as in Python, the last of equal keys counts
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const PickleNode& k = nodes_[dict.items[i]];
    if (k.kind == PickleKind::kString && k.text == key) found = dict.items[i + 1];
  }
  return found;
}

Json Pickle::to_json(uint32_t index) const {
  int64_t budget = 1 << 16;  // shared parts may be visited many times over
  return to_json(index, 0, &budget);
}

Json Pickle::to_json(uint32_t index, int depth, int64_t* budget) const {
  if (depth > kMaxDepth) fail("values nested deeper than 128");
  if (--*budget < 0) fail("more than 65,536 values");
  const PickleNode& n = node(index);
  const auto name_of = [&](uint32_t callee) { return "<" + node(callee).text + ">"; };
  const auto pairs_to_json = [&](const std::vector<uint32_t>& items) {
    Json object = Json::object();
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      const PickleNode& key = node(items[i]);
      const std::string name = key.kind == PickleKind::kString ? key.text
                               : key.kind == PickleKind::kInt  ? std::to_string(key.integer)
                                                               : std::string("<key>");
      object[name] = to_json(items[i + 1], depth + 1, budget);
    }
    return object;
  };
  switch (n.kind) {
    case PickleKind::kNone:
      return nullptr;
    case PickleKind::kBool:
      return n.integer != 0;
    case PickleKind::kInt:
      return n.integer;
    case PickleKind::kFloat:
      return n.real;
    case PickleKind::kString:
      return n.text;
    case PickleKind::kBytes:
      return "<bytes>";
    case PickleKind::kTuple:
    case PickleKind::kList:
    case PickleKind::kSet: {
      Json list = Json::array();
      for (uint32_t item : n.items) list.push_back(to_json(item, depth + 1, budget));
      return list;
    }
    case PickleKind::kDict:
      return pairs_to_json(n.items);
    case PickleKind::kGlobal:
      return "<" + n.text + ">";
    case PickleKind::kCall:
    case PickleKind::kObject:
      if (n.state != kNone && node(n.state).kind == PickleKind::kDict) {
        return to_json(n.state, depth + 1, budget);
      }
      if (is_global(n.callee, "collections OrderedDict")) return pairs_to_json(n.items);
      return name_of(n.callee);
    case PickleKind::kPersistent:
      return "<storage>";
  }
  return nullptr;
}

}  // namespace fathom
