// Pickles: a writer of protocol 2 and a symbolic reader of protocols 2 to 5.
//
// The reader never imports and never calls anything. A global is a pair of words, a call is a node
// that holds a function's name and its arguments, an object a node that holds a class's name and a
// state; who reads a file then looks for the few nodes that it knows. Names that are not on the
// list of the file's kind are errors, and some names mark the file as hostile on every list.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fathom/base/json.h"

namespace fathom {

class PickleWriter {
 public:
  /// @param memo_all true puts every object into the memo as Python does, which gives the bytes
  /// that Python gives; false only strings and globals, which is smaller and reads back the same.
  explicit PickleWriter(bool memo_all);

  void none() { op('N'); }
  void boolean(bool value) { op(value ? '\x88' : '\x89'); }
  void integer(int64_t value);
  void real(double value);
  void string(std::string_view utf8);
  void global(std::string_view module, std::string_view name);

  void mark() { op('('); }
  void empty_tuple() { op(')'); }
  void tuple_from_mark();
  void tuple(int size);  // of the last 1, 2 or 3 objects
  /// A tuple of integers.
  void integers(const std::vector<int64_t>& values);
  void empty_list();
  void append() { op('a'); }
  void appends() { op('e'); }  // from the mark
  void empty_dict();
  void set_item() { op('s'); }
  void set_items() { op('u'); }  // from the mark
  void reduce();                 // function, argument tuple -> call
  void new_object();             // class, argument tuple -> object
  void build() { op('b'); }      // object, state -> object
  void persistent_id() { op('Q'); }

  /// null, booleans, numbers, strings, lists and dicts.
  void json(const Json& value);

  std::string finish();

 private:
  void op(char code) { out_.push_back(code); }
  void little_endian(uint64_t value, int num_bytes);
  void put();                           // memo entry for the object on top
  bool recall(const std::string& key);  // true: it was in the memo and is on the stack again
  void remember(const std::string& key);

  std::string out_;
  bool memo_all_;
  uint32_t memo_size_ = 0;
  std::map<std::string, uint32_t> memo_;
};

/// What a pickle may name and how big it may be.
enum class PickleFile {
  kTensor,    // data.pkl of one tensor
  kMetadata,  // .metadata
  kCommon,    // common.pt: unknown names are kept as inert leaves
};

enum class PickleKind {
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kBytes,
  kTuple,
  kList,
  kSet,
  kDict,
  kGlobal,
  kCall,
  kObject,
  kPersistent,
};

struct PickleNode {
  static constexpr uint32_t kNoNode = 0xFFFFFFFF;
  PickleKind kind = PickleKind::kNone;
  int64_t integer = 0;  // kInt, kBool
  double real = 0;      // kFloat
  std::string text;     // kString, kBytes; kGlobal: "module name"
  // Tuple, list, set: elements. Dict: key, value, key, value ... Call, object: such pairs or
  // elements that were added to it.
  std::vector<uint32_t> items;
  uint32_t callee = kNoNode;     // kCall: function; kObject: class
  uint32_t arguments = kNoNode;  // kCall, kObject: a tuple; kPersistent: the id
  uint32_t state = kNoNode;      // kCall, kObject: what BUILD gave it
};

class Pickle {
 public:
  /// Errors: UserError for a truncated stream, an opcode, a name or a size that is not allowed, or
  /// bytes after the end; a hostile name is called that.
  static Pickle decode(std::string_view bytes, PickleFile file, const std::string& origin);

  const PickleNode& node(uint32_t index) const { return nodes_[index]; }
  uint32_t root() const { return root_; }
  const std::string& origin() const { return origin_; }

  // Typed access. Errors: UserError that says what was expected where.
  const PickleNode& expect(uint32_t index, PickleKind kind, std::string_view what) const;
  int64_t integer(uint32_t index, std::string_view what) const;
  const std::string& string(uint32_t index, std::string_view what) const;
  bool is_global(uint32_t index, std::string_view module_and_name) const;
  /// Integers of a tuple.
  std::vector<int64_t> integers(uint32_t index, std::string_view what) const;
  /// The value of a string key in a dict; kNoNode when there is none.
  uint32_t find(const PickleNode& dict, std::string_view key) const;
  [[noreturn]] void fail(std::string_view what) const;

  /// Plain data as Json; what has no counterpart becomes a string "<module name>". Objects and
  /// calls with a state dict become that dict. Errors: UserError when nested deeper than 128.
  Json to_json(uint32_t index) const;

 private:
  friend class PickleReader;
  Json to_json(uint32_t index, int depth, int64_t* budget) const;
  std::vector<PickleNode> nodes_;
  uint32_t root_ = PickleNode::kNoNode;
  std::string origin_;
};

}  // namespace fathom
