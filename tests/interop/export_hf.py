"""Model directories that we write, read by transformers, and the reverse.

usage: export_hf.py PATH_TO_FATHOM

1. `export-hf --dtype bf16` of golden models, under official and transformers' names: transformers loads
   it without a missing or unexpected tensor, each tensor is the golden one rounded once, and the logits
   of `score` on the same directory agree with transformers' to 1e-4.
2. `prepare-single --names transformers` of the quantised models: transformers loads it with the bytes that
   golden/<case>/expected.json states.
3. A model that transformers made and saved: we export it, and every tensor comes back.
4. `export-hf --dtype fp8`: the codes and scales decode, by torch, to what we decode them to.
"""

import hashlib
import json
import os
import re
import sys
import warnings

import torch
from safetensors.torch import load_file, safe_open
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from program import GOLDEN, Checks, run_ok, work_directory, write_lines

warnings.filterwarnings("ignore")
LEAVES = {
    "embed_tokens.weight": "embed.weight", "lm_head.weight": "head.weight", "norm.weight": "norm.weight",
    "hc_head.hc_fn": "hc_head_fn", "hc_head.hc_base": "hc_head_base", "hc_head.hc_scale": "hc_head_scale",
}
IN_LAYER = [
    (r"^input_layernorm", "attn_norm"), (r"^post_attention_layernorm", "ffn_norm"),
    (r"^attn_hc\.", "hc_attn_"), (r"^ffn_hc\.", "hc_ffn_"),
    (r"^self_attn\.compressor\.indexer\.q_b_proj", "attn.indexer.wq_b"),
    (r"^self_attn\.compressor\.indexer\.scorer\.weights_proj", "attn.indexer.weights_proj"),
    (r"^self_attn\.compressor\.indexer\.", "attn.indexer.compressor."), (r"^self_attn\.", "attn."),
    (r"compressor\.kv_proj", "compressor.wkv"), (r"compressor\.gate_proj", "compressor.wgate"),
    (r"compressor\.position_bias", "compressor.ape"), (r"compressor\.kv_norm", "compressor.norm"),
    (r"^attn\.q_a_proj", "attn.wq_a"), (r"^attn\.q_a_norm", "attn.q_norm"), (r"^attn\.q_b_proj", "attn.wq_b"),
    (r"^attn\.kv_proj", "attn.wkv"), (r"^attn\.o_a_proj", "attn.wo_a"), (r"^attn\.o_b_proj", "attn.wo_b"),
    (r"^attn\.sinks", "attn.attn_sink"), (r"^mlp\.", "ffn."), (r"e_score_correction_bias", "bias"),
    (r"^ffn\.shared_experts\.gate_proj", "ffn.shared_experts.w1"),
    (r"^ffn\.shared_experts\.down_proj", "ffn.shared_experts.w2"),
    (r"^ffn\.shared_experts\.up_proj", "ffn.shared_experts.w3"),
]


def official_tensors(model):
    """transformers' state under official names, fused experts taken apart."""
    tensors = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.")
        if name in LEAVES:
            tensors[LEAVES[name]] = value
            continue
        match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
        if match is None:
            continue  # buffers of the rotary embedding
        layer, leaf = f"layers.{match[1]}.", match[2]
        for pattern, replacement in IN_LAYER:
            leaf = re.sub(pattern, replacement, leaf)
        if leaf == "ffn.experts.gate_up_proj":
            for expert, rows in enumerate(value):
                w1, w3 = rows.chunk(2)
                tensors[f"{layer}ffn.experts.{expert}.w1.weight"] = w1
                tensors[f"{layer}ffn.experts.{expert}.w3.weight"] = w3
        elif leaf == "ffn.experts.down_proj":
            for expert, w2 in enumerate(value):
                tensors[f"{layer}ffn.experts.{expert}.w2.weight"] = w2
        else:
            tensors[layer + leaf] = value
    return tensors


def load(directory, checks):
    """As fp32, which holds BF16 exactly."""
    model, info = DeepseekV4ForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True,
                                                        attn_implementation="eager")
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        checks.that(not info[kind], f"{directory}: {kind}: {list(info[kind])[:5]}")
    return model.eval()


def compare(checks, what, got, expected):
    checks.that(set(got) == set(expected), f"{what}: names differ: {sorted(set(got) ^ set(expected))[:6]}")
    for name in sorted(set(got) & set(expected)):
        a, b = got[name], expected[name]
        checks.that(a.shape == b.shape and torch.equal(a.double(), b.double()), f"{what}: {name} differs")


def is_kept_fp32(name):
    return re.search(r"attn_sink$|ape$|hc_(attn|ffn|head)_|gate\.bias$", name) is not None


def as_exported(name, value):
    if not value.is_floating_point():
        return value
    return value.float() if is_kept_fp32(name) else value.bfloat16()


def stable_topk(scores, k, dim=-1, **_):
    """The library leaves the order of ties open; ours is the lower index first."""
    values, indices = torch.sort(scores, dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


def check_logits(fathom, checks, work, directory, model, what):
    case = "small" if "small" in what else "release_shapes"
    with safe_open(os.path.join(GOLDEN, case, "case.safetensors"), "pt") as f:
        ids = [f.get_tensor(k).tolist() for k in sorted(f.keys()) if re.fullmatch(r"ids\.\d+", k)]
    write_lines(os.path.join(work, "in.jsonl"), [{"token_ids": i} for i in ids])
    run_ok(fathom, "score", "--hf-checkpoint", directory, "--input", os.path.join(work, "in.jsonl"), "--output",
           os.path.join(work, "out.safetensors"), "--with-logits")
    ours = load_file(os.path.join(work, "out.safetensors"))
    plain, torch.Tensor.topk = torch.Tensor.topk, stable_topk
    try:
        for i, tokens in enumerate(ids):
            with torch.no_grad():
                theirs = model(torch.tensor([tokens])).logits[0]
            worst = (ours[f"logits.{i}"] - theirs).abs().max().item()
            checks.that(worst <= 1e-4, f"{what}: logits of sequence {i} differ by {worst}")
    finally:
        torch.Tensor.topk = plain


def golden_tensors(case):
    tensors = load_file(os.path.join(GOLDEN, case, "model", "model.safetensors"))
    return {k: v for k, v in tensors.items() if not k.startswith("mtp.")}


def check_export(fathom, checks, work):
    for case in ("small", "release_shapes"):
        rounded = {k: as_exported(k, v) for k, v in golden_tensors(case).items()}
        for names in ("official", "transformers"):
            what = f"export of {case}, {names} names"
            out = os.path.join(work, f"export_{case}_{names}")
            run_ok(fathom, "export-hf", "--load", os.path.join(GOLDEN, case, "model"), "--output", out, "--dtype",
                   "bf16", "--names", names)
            model = load(out, checks)
            compare(checks, what, official_tensors(model), rounded)
            check_logits(fathom, checks, work, out, model, what)


def check_cast(fathom, checks, work):
    for case in ("small_official", "small_base", "small_sgl"):
        out = os.path.join(work, f"cast_{case}")
        run_ok(fathom, "prepare-single", "--input-fp8-hf-path", os.path.join(GOLDEN, case, "model"),
               "--output-bf16-hf-path", out, "--names", "transformers")
        got = official_tensors(load(out, checks))
        with open(os.path.join(GOLDEN, case, "expected.json"), encoding="utf-8") as f:
            expected = {k: v for k, v in json.load(f).items() if not k.startswith("mtp.")}
        checks.that(set(got) == set(expected), f"cast of {case}: names differ")
        for name, entry in expected.items():
            value = got[name].contiguous().to(getattr(torch, entry["dtype"]))
            digest = hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest()
            checks.that(digest == entry["sha256"], f"cast of {case}: {name} differs")


def check_saved_by_transformers(fathom, checks, work):
    with open(os.path.join(GOLDEN, "release_shapes", "model", "config.json"), encoding="utf-8") as f:
        config = DeepseekV4Config(**json.load(f))
    torch.manual_seed(1)
    model = DeepseekV4ForCausalLM(config)
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        saved, out = os.path.join(work, f"saved_{dtype}"), os.path.join(work, f"back_{dtype}")
        model.save_pretrained(saved, max_shard_size="2MB")
        run_ok(fathom, "export-hf", "--load", saved, "--output", out)
        expected = {k: as_exported(k, v) for k, v in official_tensors(model).items()}
        compare(checks, f"saved by transformers in {dtype}",
                load_file(os.path.join(out, "model.safetensors")), expected)


def check_fp8(fathom, checks, work):
    fp8, bf16 = os.path.join(work, "fp8"), os.path.join(work, "fp8_cast")
    run_ok(fathom, "export-hf", "--load", os.path.join(GOLDEN, "small", "model"), "--output", fp8, "--dtype", "fp8")
    run_ok(fathom, "prepare-single", "--input-fp8-hf-path", fp8, "--output-bf16-hf-path", bf16, "--names", "official")
    stored, cast = load_file(os.path.join(fp8, "model.safetensors")), load_file(os.path.join(bf16, "model.safetensors"))
    quantised = [k for k, v in stored.items() if v.dtype == torch.float8_e4m3fn]
    checks.that(len(quantised) == 127, f"{len(quantised)} tensors in FP8")
    for name in quantised:
        scale = stored[name.removesuffix("weight") + "scale"]
        checks.that(scale.dtype == torch.float8_e8m0fnu, f"{name}: scale is {scale.dtype}")
        wide = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
        value = stored[name].float()
        value = (value * wide[: value.shape[0], : value.shape[1]]).bfloat16()
        checks.that(torch.equal(value, cast[name]), f"fp8: {name} differs")


def main():
    fathom = sys.argv[1]
    checks = Checks()
    with work_directory("export_hf") as work:
        check_export(fathom, checks, work)
        check_cast(fathom, checks, work)
        check_saved_by_transformers(fathom, checks, work)
        check_fp8(fathom, checks, work)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
