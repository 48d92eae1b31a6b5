"""`export-hf` against `transformers`: it loads our directories, and computes what `fathom score` computes.

usage: transformers_export.py PATH_TO_FATHOM [--sequences N] [--seed S]

(export_hf.py compares names and tensors; this test compares numbers that are computed from them.)
1. BF16 exports load without a missing or an unexpected name; logits and log-probs of random sequences agree
   with `score` of the same directory to 1e-4.
2. FP8 exports hold the codes and scales that torch computes for them; our own program decodes them to those
   values, and `score` of them agrees with transformers on the decoded weights.
3. A torch_dist directory exports to the bits of the model that it was made from.

One deviation from the library, as in tests/golden/README.md: the indexer's top-k is made stable. The
library leaves the order of equal scores open, and scores of exactly 0 are common after a ReLU.
"""

import argparse
import json
import os
import re
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV4ForCausalLM, logging
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as library

from program import GOLDEN, Checks, run_ok, work_directory, write_lines

BOUND = 1e-4
# What an FP8 export holds in FP8; everything else is as in the BF16 export.
FP8 = re.compile(r"(experts(\.\d+)?\.w[123]|attn\.(wq_a|wq_b|wkv|wo_b)|indexer\.wq_b)\.weight$")
F32 = re.compile(r"(attn_sink|ape|hc_\w+|gate\.bias)$")


def stable_top_k(scores, k, dim=-1):
    """Higher score first, then the lower index; -0 equals +0."""
    values, indices = torch.sort(scores, dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


class StableIndexer(library.DeepseekV4Indexer):
    def forward(self, *args, **kwargs):
        plain = torch.Tensor.topk
        torch.Tensor.topk = stable_top_k
        try:
            return super().forward(*args, **kwargs)
        finally:
            torch.Tensor.topk = plain


def load_with_transformers(checks, directory):
    library.DeepseekV4Indexer = StableIndexer
    model, info = DeepseekV4ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info[kind] if not str(name).startswith("mtp."))
        checks.that(not names, f"{directory}: {kind}: {names[:5]}")
    checks.that(any(isinstance(m, StableIndexer) for m in model.modules()), "no indexer was made stable")
    return model.eval()


def random_sequences(directory, num, seed):
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    random = np.random.default_rng(seed)
    lengths = [1, 2, 15, 16, 17, 64, *random.integers(3, 200, num).tolist()]
    return [random.integers(0, config["vocab_size"], int(n)).tolist() for n in lengths[:max(num, 6)]]


def check_logits(checks, fathom, what, scored_directory, model, sequences, work):
    lines = write_lines(os.path.join(work, "ids.jsonl"), [{"token_ids": ids} for ids in sequences])
    out = os.path.join(work, "scored.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", scored_directory, "--input", lines, "--output", out, "--with-logits")
    scored = load_file(out)
    worst = 0.0
    with torch.no_grad():
        for i, ids in enumerate(sequences):
            want = model(torch.tensor([ids]), use_cache=False).logits[0]
            difference = (scored[f"logits.{i}"] - want).abs().max().item()
            worst = max(worst, difference)
            checks.that(difference <= BOUND, f"{what}: logits of sequence {i} ({len(ids)} tokens) off by {difference:.3g}")
            log_probs = torch.log_softmax(want, -1)[:-1].gather(-1, torch.tensor(ids[1:]).view(-1, 1)).view(-1)
            if len(ids) > 1:
                difference = (scored[f"logprobs.{i}"] - log_probs).abs().max().item()
                checks.that(difference <= BOUND, f"{what}: log-probs of sequence {i} off by {difference:.3g}")
    print(f"{what}: {len(sequences)} sequences, logits within {worst:.2g}")


def read_directory(path):
    """Every tensor of all shards."""
    tensors = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(path, name)))
    return tensors


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8),
                                                                      b.contiguous().view(torch.uint8))


def quantise(weight):
    """Codes and E8M0 scales of 128 x 128 blocks: scale = the power of two at or above largest / 448."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.double(), (0, -columns % 128, 0, -rows % 128))
    blocks = padded.view(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    largest = blocks.abs().amax((1, 3)).clamp(min=1e-4)
    exponent = torch.ceil(torch.log2(largest / 448))
    codes = (blocks / torch.exp2(exponent)[:, None, :, None]).view(padded.shape)[:rows, :columns]
    return codes.float().to(torch.float8_e4m3fn), torch.exp2(exponent).float().to(torch.float8_e8m0fnu)


def decode(codes, scale):
    rows, columns = codes.shape
    factor = scale.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (codes.float() * factor).bfloat16()


def check_fp8(checks, name, exported, source):
    """Returns the decoded weights under official names."""
    decoded = {}
    quantised = 0
    for key, want in source.items():
        got = exported.get(key)
        if not checks.that(got is not None, f"{name}: no {key}"):
            continue
        if FP8.search(key):
            quantised += 1
            codes, scale = quantise(want.float())
            got_scale = exported.get(key[:-len("weight")] + "scale")
            if checks.that(got_scale is not None and got_scale.dtype == torch.float8_e8m0fnu, f"{name} {key}: no scale"):
                checks.that(same_bits(got_scale, scale), f"{name} {key}: other scales than torch's")
                checks.that(same_bits(got, codes), f"{name} {key}: other codes than torch's")
                decoded[key] = decode(got, got_scale)
        else:
            if want.is_floating_point():
                want = want.float() if F32.search(key) else want.bfloat16()
            checks.that(same_bits(got, want), f"{name} {key}: {got.dtype}, not the source rounded once")
            decoded[key] = got
    checks.that(quantised > 0, f"{name}: nothing quantised")
    extra = set(exported) - set(source) - {key[:-len("weight")] + "scale" for key in source}
    checks.that(not extra, f"{name}: unexpected tensors {sorted(extra)[:5]}")
    return decoded


def check_model(checks, fathom, name, sequences, seed, work):
    source_directory = os.path.join(GOLDEN, name, "model")
    source = read_directory(source_directory)
    bf16, fp8 = os.path.join(work, f"{name}-bf16"), os.path.join(work, f"{name}-fp8")
    run_ok(fathom, "export-hf", "--load", source_directory, "--output", bf16, "--dtype", "bf16")
    ids = random_sequences(bf16, sequences, seed)
    check_logits(checks, fathom, f"{name} bf16", bf16, load_with_transformers(checks, bf16), ids, work)

    run_ok(fathom, "export-hf", "--load", source_directory, "--output", fp8, "--dtype", "fp8")
    decoded = check_fp8(checks, f"{name} fp8", read_directory(fp8), source)
    cast = os.path.join(work, f"{name}-cast")
    run_ok(fathom, "prepare-single", "--input-fp8-hf-path", fp8, "--output-bf16-hf-path", cast, "--names", "official")
    cast_tensors = read_directory(cast)
    checks.that(set(cast_tensors) == set(decoded), f"{name} fp8: prepare-single gives other names")
    for key in sorted(set(cast_tensors) & set(decoded)):
        checks.that(same_bits(cast_tensors[key], decoded[key]), f"{name} fp8 {key}: decoded to other bits")
    # transformers on the decoded weights, our program on the FP8 directory itself.
    widened = os.path.join(work, f"{name}-decoded")
    os.makedirs(widened)
    shutil.copy(os.path.join(bf16, "config.json"), widened)
    save_file(decoded, os.path.join(widened, "model.safetensors"), metadata={"format": "pt"})
    check_logits(checks, fathom, f"{name} fp8", fp8, load_with_transformers(checks, widened), ids, work)


def check_torch_dist(checks, fathom, work):
    """A torch_dist directory exports to the bits of the model that it was made from."""
    source = os.path.join(GOLDEN, "small_official", "model")
    torch_dist, out, direct = (os.path.join(work, n) for n in ("torch_dist", "from_torch_dist", "direct"))
    run_ok(fathom, "prepare-spmd", "--model-name", "golden", "--hf-checkpoint", source, "--save", torch_dist)
    run_ok(fathom, "export-hf", "--load", torch_dist, "--hf-checkpoint", source, "--output", out)
    run_ok(fathom, "export-hf", "--load", source, "--output", direct)
    a, b = read_directory(out), read_directory(direct)
    checks.that(set(a) == set(b), f"torch_dist: other names: {sorted(set(a) ^ set(b))[:5]}")
    for key in sorted(set(a) & set(b)):
        # A torch_dist directory holds F32 sources as BF16, but for the tensors that stay F32.
        checks.that(same_bits(a[key], b[key]), f"torch_dist {key}: not the bits of the source")
    load_with_transformers(checks, out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checks = Checks()
    with work_directory("transformers_export") as work:
        for name in ("small", "release_shapes"):
            check_model(checks, args.fathom, name, args.sequences, args.seed, work)
        check_torch_dist(checks, args.fathom, work)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
