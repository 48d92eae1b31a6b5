// The tensors of either kind of files under official names and as they decode: what makes a
// torch_dist directory and a Hugging Face one comparable.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fathom/checkpoint/decode.h"
#include "fathom/checkpoint/inspect_tensors.h"

namespace fathom {

class OfficialTensors {
 public:
  /// Experts that are stored in one tensor, and halves of a linear_fc1, are tensors of their own
  /// here; a weight with a scale is the BF16 that it decodes to. Copies of the embedding and head
  /// in MTP modules are left out. What belongs to no V4 model keeps its name.
  /// @param tensors must outlive this. @param num_layers of the model, which SGLang-style names
  /// need to tell MTP modules from layers. Errors: UserError for a weight that its scale does not
  /// fit, and for two tensors of one name.
  OfficialTensors(InspectTensors* tensors, int64_t num_layers);

  const std::map<std::string, ListedTensor>& tensors() const { return listed_; }
  /// The row-major bytes of a tensor. Valid until the next call. Errors: UserError for damaged
  /// ones.
  std::span<const uint8_t> read(const std::string& name);

 private:
  struct Piece {
    std::string stored;
    std::vector<int64_t> offsets, sizes;           // torch_dist: the box
    std::shared_ptr<const EncodedTensor> encoded;  // safetensors; null for what is not decoded
    int64_t first_row = 0;
  };
  void add(const std::string& name, ListedTensor listed, Piece piece);
  void add_stored(const std::string& key, const ListedTensor& stored);
  void add_encoded(const std::string& official, bool is_fused, const EncodedTensor& tensor);
  void add_safetensors(int64_t num_layers);

  InspectTensors* from_;
  std::map<std::string, ListedTensor> listed_;
  std::map<std::string, Piece> pieces_;
  std::vector<uint8_t> held_;
};

/// One past the highest layer of a torch_dist directory.
int64_t count_decoder_layers(const InspectTensors& torch_dist);

}  // namespace fathom
