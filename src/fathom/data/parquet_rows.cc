#include "fathom/data/parquet_rows.h"

#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/scalar.h>
#include <arrow/util/utf8.h>
#include <parquet/arrow/reader.h>
#include <parquet/exception.h>
#include <parquet/file_reader.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/log.h"

namespace fathom {
namespace {

constexpr int64_t kBatchRows = 1024;
constexpr int kMaxDepth = 32;

// Why a column of this type has no counterpart in JSON; empty: it has.
std::string refuse_type(const arrow::DataType& type, int depth) {
  if (depth > kMaxDepth) return "it is nested too deeply";
  switch (type.id()) {
    case arrow::Type::NA:
    case arrow::Type::BOOL:
    case arrow::Type::UINT8:
    case arrow::Type::INT8:
    case arrow::Type::UINT16:
    case arrow::Type::INT16:
    case arrow::Type::UINT32:
    case arrow::Type::INT32:
    case arrow::Type::UINT64:
    case arrow::Type::INT64:
    case arrow::Type::HALF_FLOAT:
    case arrow::Type::FLOAT:
    case arrow::Type::DOUBLE:
    case arrow::Type::STRING:
    case arrow::Type::LARGE_STRING:
    case arrow::Type::BINARY:
    case arrow::Type::LARGE_BINARY:
    case arrow::Type::DATE32:
    case arrow::Type::DATE64:
    case arrow::Type::TIME32:
    case arrow::Type::TIME64:
    case arrow::Type::TIMESTAMP:
    case arrow::Type::DECIMAL128:
    case arrow::Type::DECIMAL256:
      return "";
    case arrow::Type::DICTIONARY:
      return refuse_type(*static_cast<const arrow::DictionaryType&>(type).value_type(), depth + 1);
    case arrow::Type::LIST:
    case arrow::Type::LARGE_LIST:
    case arrow::Type::FIXED_SIZE_LIST:
    case arrow::Type::MAP:
    case arrow::Type::STRUCT:
      for (const auto& field : type.fields()) {
        std::string problem = refuse_type(*field->type(), depth + 1);
        if (!problem.empty()) return problem;
      }
      return "";
    default:
      return "its type " + type.ToString() + " has no counterpart in JSON";
  }
}

template <typename ArrowArray>
auto value_of(const arrow::Array& array, int64_t row) {
  return static_cast<const ArrowArray&>(array).Value(row);
}

bool is_utf8(std::string_view text) {
  return arrow::util::ValidateUTF8(reinterpret_cast<const uint8_t*>(text.data()),
                                   static_cast<int64_t>(text.size()));
}

// Bytes that are no text (pictures, say) have nothing to say to a text model: null.
Json text_of(std::string_view text, bool must_be_text) {
  if (is_utf8(text)) return std::string(text);
  FATHOM_CHECK(!must_be_text, "its text is not UTF-8");
  return nullptr;
}

template <typename ArrowArray>
Json string_of(const arrow::Array& array, int64_t row, bool must_be_text) {
  return text_of(static_cast<const ArrowArray&>(array).GetView(row), must_be_text);
}

Json to_json(const arrow::Array& array, int64_t row);

template <typename ArrowArray>
Json list_of(const arrow::Array& array, int64_t row) {
  const auto& list = static_cast<const ArrowArray&>(array);
  Json items = Json::array();
  for (int64_t i = 0; i < list.value_length(row); ++i)
    items.push_back(to_json(*list.values(), list.value_offset(row) + i));
  return items;
}

Json object_of(const arrow::StructArray& array, int64_t row) {
  Json object = Json::object();
  for (int i = 0; i < array.num_fields(); ++i)
    object[array.struct_type()->field(i)->name()] = to_json(*array.field(i), row);
  return object;
}

Json pairs_of(const arrow::MapArray& map, int64_t row) {
  Json pairs = Json::array();
  for (int64_t i = 0; i < map.value_length(row); ++i) {
    const int64_t at = map.value_offset(row) + i;
    pairs.push_back({{"key", to_json(*map.keys(), at)}, {"value", to_json(*map.items(), at)}});
  }
  return pairs;
}

Json to_json(const arrow::Array& array, int64_t row) {
  if (array.IsNull(row)) return nullptr;
  switch (array.type_id()) {
    case arrow::Type::BOOL:
      return value_of<arrow::BooleanArray>(array, row);
    case arrow::Type::UINT8:
      return value_of<arrow::UInt8Array>(array, row);
    case arrow::Type::INT8:
      return value_of<arrow::Int8Array>(array, row);
    case arrow::Type::UINT16:
      return value_of<arrow::UInt16Array>(array, row);
    case arrow::Type::INT16:
      return value_of<arrow::Int16Array>(array, row);
    case arrow::Type::UINT32:
      return value_of<arrow::UInt32Array>(array, row);
    case arrow::Type::INT32:
      return value_of<arrow::Int32Array>(array, row);
    case arrow::Type::UINT64:
      return value_of<arrow::UInt64Array>(array, row);
    case arrow::Type::INT64:
      return value_of<arrow::Int64Array>(array, row);
    case arrow::Type::FLOAT:
      return value_of<arrow::FloatArray>(array, row);
    case arrow::Type::DOUBLE:
      return value_of<arrow::DoubleArray>(array, row);
    case arrow::Type::STRING:
      return string_of<arrow::StringArray>(array, row, true);
    case arrow::Type::LARGE_STRING:
      return string_of<arrow::LargeStringArray>(array, row, true);
    case arrow::Type::BINARY:
      return string_of<arrow::BinaryArray>(array, row, false);
    case arrow::Type::LARGE_BINARY:
      return string_of<arrow::LargeBinaryArray>(array, row, false);
    case arrow::Type::LIST:
      return list_of<arrow::ListArray>(array, row);
    case arrow::Type::LARGE_LIST:
      return list_of<arrow::LargeListArray>(array, row);
    case arrow::Type::FIXED_SIZE_LIST:
      return list_of<arrow::FixedSizeListArray>(array, row);
    case arrow::Type::MAP:
      return pairs_of(static_cast<const arrow::MapArray&>(array), row);
    case arrow::Type::STRUCT:
      return object_of(static_cast<const arrow::StructArray&>(array), row);
    case arrow::Type::DICTIONARY: {
      const auto& dictionary = static_cast<const arrow::DictionaryArray&>(array);
      return to_json(*dictionary.dictionary(), dictionary.GetValueIndex(row));
    }
    default: {  // dates, times, decimals, half floats: as Arrow writes them
      const auto scalar = array.GetScalar(row);
      FATHOM_CHECK(scalar.ok(), scalar.status().ToString());
      const std::string text = (*scalar)->ToString();
      return array.type_id() == arrow::Type::HALF_FLOAT ? Json(std::stod(text)) : Json(text);
    }
  }
}

class ParquetFile {
 public:
  explicit ParquetFile(const std::string& path) : path_(path) {
    const auto file = arrow::io::ReadableFile::Open(path);
    check(file.status(), "cannot be opened");
    auto reader = parquet::arrow::OpenFile(*file, arrow::default_memory_pool());
    check(reader.status(), "is no sound parquet file");
    reader_ = std::move(*reader);
    reader_->set_batch_size(kBatchRows);
    reader_->set_use_threads(false);
    std::shared_ptr<arrow::Schema> schema;
    check(reader_->GetSchema(&schema), "has a schema that cannot be read");
    for (const auto& field : schema->fields()) {
      const std::string problem = refuse_type(*field->type(), 0);
      is_left_out_.push_back(!problem.empty());
      if (!problem.empty())
        log_warning(path, ": column ", field->name(), " is left out: ", problem);
    }
  }

  void read(const RowRange& range, const std::function<void(const Row& row)>& take) {
    int64_t row = 0;
    const auto metadata = reader_->parquet_reader()->metadata();
    for (int group = 0; group < metadata->num_row_groups(); ++group) {
      const int64_t num_rows = metadata->RowGroup(group)->num_rows();
      if (row + num_rows > range.begin && (!range.end || row < *range.end))
        read_group(group, row, range, take);
      row += num_rows;
    }
  }

 private:
  void check(const arrow::Status& status, const std::string& what) const {
    FATHOM_CHECK(status.ok(), path_, " ", what, ": ", status.message());
  }

  void read_group(int group, int64_t first_row, const RowRange& range,
                  const std::function<void(const Row& row)>& take) {
    const std::string where = str_cat("cannot be read from row ", first_row, " on");
    auto batches = reader_->GetRecordBatchReader({group});
    check(batches.status(), where);
    int64_t row = first_row;
    for (;;) {
      std::shared_ptr<arrow::RecordBatch> batch;
      check((*batches)->ReadNext(&batch), where);
      if (batch == nullptr) return;
      check(batch->Validate(), where);
      for (int64_t i = 0; i < batch->num_rows(); ++i, ++row) {
        if (!range.contains(row)) continue;
        const std::string origin = str_cat(path_, " row ", row);
        take({origin, [&] { return parse(*batch, i, origin); }});
      }
    }
  }

  Json parse(const arrow::RecordBatch& batch, int64_t row, const std::string& origin) const {
    Json object = Json::object();
    for (int column = 0; column < batch.num_columns(); ++column) {
      if (is_left_out_[static_cast<size_t>(column)]) continue;
      const std::string& name = batch.column_name(column);
      object[name] = with_context(str_cat(origin, ": column ", name),
                                  [&] { return to_json(*batch.column(column), row); });
    }
    return object;
  }

  std::string path_;
  std::unique_ptr<parquet::arrow::FileReader> reader_;
  std::vector<bool> is_left_out_;
};

}  // namespace

bool has_parquet() { return true; }

void for_each_parquet_row(const std::string& path, const RowRange& range,
                          const std::function<void(const Row& row)>& take) {
  static const bool is_ready = (arrow::util::InitializeUTF8(), true);
  (void)is_ready;
  try {
    ParquetFile(path).read(range, take);
  } catch (const parquet::ParquetException& e) {
    throw UserError(str_cat(path, " is no sound parquet file: ", e.what()));
  }
}

}  // namespace fathom
