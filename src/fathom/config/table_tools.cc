// Rows of the one-off commands: sft, score, generate, tokenize, export-hf, prepare-single, inspect;
// and the two options that bring in other options.
#include "fathom/config/table.h"

namespace fathom::config {
namespace {

void describe_files(OptionTable& table, Options& options) {
  ToolOptions& o = options.tool;
  table.group("Files", set_of(Command::kScore, Command::kGenerate, Command::kTokenize));
  table.add("input", &o.input, "one JSON object a line; unset or -: standard input (tokenize only)")
      .path()
      .required_for(set_of(Command::kScore, Command::kGenerate));
  table
      .add("output", &o.output,
           "file or directory to write; unset or -: standard output (tokenize and eval)")
      .path()
      .for_commands(set_of(Command::kScore, Command::kGenerate, Command::kTokenize, Command::kEval,
                           Command::kExportHf, Command::kSft))
      .required_for(set_of(Command::kScore, Command::kGenerate, Command::kExportHf, Command::kSft));
  table.group("Inspect", set_of(Command::kInspect));
  table.add("path", &o.path, "a checkpoint, a torch_dist directory, a safetensors file or a run")
      .path()
      .positional();
  table.add("diff", &o.diff, "A B: what differs between two checkpoints; or PATH --diff B");
  table.add("verify", &o.verify,
            "read every byte: checksums, and hashes of downloads where they are known");
  table.add("json", &o.json, "print JSON, in inspect with every tensor, in place of a table")
      .for_commands(set_of(Command::kInspect, Command::kBench, Command::kPlan));
}

void describe_score_and_generate(OptionTable& table, Options& options) {
  ToolOptions& o = options.tool;
  table.group("Score", set_of(Command::kScore));
  table.add("with-logits", &o.with_logits, "write logits.<i> [n, V] too");
  table.add("with-gradients", &o.with_gradients,
            "write loss and grad.<tensor> of the mean loss over all predicted tokens too");
  table.add("with-mtp", &o.with_mtp, "write mtp_logits.<i> [n-1, V] too");

  table.group("Generate", set_of(Command::kGenerate));
  table.add("temperature", &o.temperature, "sampling temperature; 0 takes the likeliest token")
      .at_least(0);
  table.add("top-p", &o.top_p, "keep the likeliest tokens up to this share; 1: off")
      .above(0)
      .at_most(1);
  table.add("top-k", &o.top_k, "keep this many likeliest tokens; 0 and -1: off").at_least(-1);
  table.add("max-new-tokens", &o.max_new_tokens, "tokens of an answer").at_least(1);
  table.add("num-samples", &o.num_samples, "answers to each line").at_least(1);
  table.add("ignore-eos", &o.ignore_eos, "the model's end tokens do not end an answer");
  table.add("stop", &o.stop, "a string that ends an answer; may be given several times")
      .one_word_each();
}

void describe_conversions(OptionTable& table, Options& options) {
  ConvertOptions& o = options.convert;
  table.group("Cast to BF16", kPipeline);
  table
      .add("input-fp8-hf-path", &o.input_fp8_hf_path,
           "checkpoint to cast; unset: --hf-checkpoint, else {model-dir}/{model-name}")
      .path()
      .for_commands(set_of(Command::kPrepareSingle));
  table
      .add("output-bf16-hf-path", &o.output_bf16_hf_path,
           "where the cast goes; unset: {model-dir}/{model-name}-bf16")
      .path()
      .for_commands(set_of(Command::kPrepareSingle));

  table
      .add("plan-only", &o.plan_only,
           "print what each rank of the layout gets and end; without a layout, for the recipe's "
           "three")
      .for_commands(set_of(Command::kPrepareSpmd))
      .not_hashed();

  table.group("Export", set_of(Command::kExportHf));
  table.add_choice<ExportDtype>("dtype", &o.dtype,
                                {{"bf16", ExportDtype::kBf16}, {"fp8", ExportDtype::kFp8}},
                                "fp8: blocks of 128 by 128, see --scale-dtype");
  table.add_choice<ScaleDtype>("scale-dtype", &o.scale_dtype,
                               {{"e8m0", ScaleDtype::kE8m0}, {"f32", ScaleDtype::kF32}},
                               "of FP8 blocks: powers of two in one byte, or F32");
  table
      .add("source", &o.source,
           "the checkpoint that the weights come from: what has kept its values is copied from "
           "there "
           "byte for byte, FP4 and FP8 included")
      .path();
  table
      .add_choice<TensorNames>("names", &o.names,
                               {{"official", TensorNames::kOfficial},
                                {"sglang", TensorNames::kSglang},
                                {"transformers", TensorNames::kTransformers}},
                               "whose tensor names the files carry; sglang in prepare-single")
      .for_commands(kPipeline | set_of(Command::kExportHf))
      .not_hashed();
}

void describe_sft(OptionTable& table, Options& options) {
  SftOptions& o = options.sft;
  table.group("Supervised training", set_of(Command::kSft));
  table.add_choice<SftInit>("init", &o.init,
                            {{"random", SftInit::kRandom}, {"checkpoint", SftInit::kCheckpoint}},
                            "start from --model-config with --seed, or from --hf-checkpoint");
  table.add("model-config", &o.model_config, "config.json of the model that --init random makes")
      .path();
  table
      .add("tokenizer-dir", &o.tokenizer_dir,
           "directory with the tokenizer's files; unset: --hf-checkpoint")
      .path();
  table.add("response-key", &o.response_key, "field with the answer to learn");
  table.add("sft-steps", &o.sft_steps, "optimizer steps").at_least(1);
  table.add("append-eos", &o.append_eos, "the end token is learned behind each answer");
}

void describe_sources(OptionTable& table, Options& options) {
  table.group("More options", kAllCommands);
  table
      .add("config", &options.source.config,
           "recipe: a JSON object of option names and values. Those of other subcommands are left "
           "out")
      .path()
      .not_hashed();
  table
      .add("extra-args", &options.source.extra_args,
           "more options in one text, split like a shell does; they come last and win")
      .any_word()
      .for_commands(kPipeline | set_of(Command::kSft, Command::kEval))
      .not_hashed();
}

}  // namespace

void describe_tool_options(OptionTable& table, Options& options) {
  describe_files(table, options);
  describe_score_and_generate(table, options);
  describe_conversions(table, options);
  describe_sft(table, options);
  describe_sources(table, options);
}

}  // namespace fathom::config
