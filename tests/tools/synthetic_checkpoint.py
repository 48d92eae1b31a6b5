"""Model directories with the headers of the official release.

usage: synthetic_checkpoint.py flash|pro|small OUTPUT [--layers N] [--experts N] [--fill] [--fp8] [--seed S]

flash, pro   names, shapes, types and number of shards as published. Without --fill the files are sparse: headers and
             index are real, the weights are holes that read as zeros and take no room on the disk.
small        every kind of layer and tensor in about 30 MB.
--layers     the first N layers only (and the MTP module), --experts the first N experts: a model of the same widths
             in fewer gigabytes.
--fill       random weights: any code but NaN, scales near 2^-7, BF16 values near 0.02.
--fp8        routed experts in FP8 with blocks of 128 x 128 instead of FP4.
"""

import argparse
import json
import os
import random
import struct

MODELS = {
    "flash": dict(hidden=4096, layers=43, heads=64, q_lora=1024, o_groups=8, experts=256, width=2048, shards=46, index_topk=512,
                  ratios=[0, 0] + [4, 128] * 20 + [4, 0], scaling=1.5),
    "pro": dict(hidden=7168, layers=61, heads=128, q_lora=1536, o_groups=16, experts=384, width=3072, shards=64, index_topk=1024,
                ratios=[128, 128] + [4, 128] * 29 + [4, 0], scaling=2.5),
    "small": dict(hidden=512, layers=4, heads=8, q_lora=256, o_groups=4, experts=16, width=256, shards=6, index_topk=64,
                  ratios=[0, 4, 128, 4, 0], scaling=1.5, vocabulary=8192, hash_layers=1),
}
HEAD, O_LORA = 512, 1024
SIZES = {"F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "BF16": 2, "F32": 4, "I64": 8}


def blocks(n):
    return -(-n // 128)


def describe(name, layers=None, experts=None, fp8=False):
    """[(name, dtype, shape)] in the order in which shards are filled, and config.json."""
    m = {"vocabulary": 129280, "hash_layers": 3, **MODELS[name]}
    main_ratios = m["ratios"][:m["layers"]][:layers]
    if layers is not None:
        m["layers"] = min(layers, m["layers"])
    m["ratios"] = main_ratios + [0]
    m["experts"] = min(experts or m["experts"], m["experts"])
    hidden, tensors = m["hidden"], []

    def plain(tensor, dtype, *shape):
        tensors.append((tensor, dtype, list(shape)))

    def quantised(tensor, rows, columns):
        plain(tensor + ".weight", "F8_E4M3", rows, columns)
        plain(tensor + ".scale", "F8_E8M0", blocks(rows), blocks(columns))

    def expert(tensor, rows, columns):
        if fp8:
            return quantised(tensor, rows, columns)
        plain(tensor + ".weight", "I8", rows, columns // 2)
        plain(tensor + ".scale", "F8_E8M0", rows, columns // 32)

    def compressor(prefix, ratio, width):
        wide = width * 2 if ratio == 4 else width
        plain(prefix + ".ape", "F32", ratio, wide)
        plain(prefix + ".wkv.weight", "BF16", wide, hidden)
        plain(prefix + ".wgate.weight", "BF16", wide, hidden)
        plain(prefix + ".norm.weight", "BF16", width)

    def layer(prefix, ratio, hashed):
        plain(prefix + "attn_norm.weight", "BF16", hidden)
        plain(prefix + "ffn_norm.weight", "BF16", hidden)
        for part in ("attn", "ffn"):
            plain(f"{prefix}hc_{part}_fn", "F32", 24, 4 * hidden)
            plain(f"{prefix}hc_{part}_base", "F32", 24)
            plain(f"{prefix}hc_{part}_scale", "F32", 3)
        a = prefix + "attn."
        quantised(a + "wq_a", m["q_lora"], hidden)
        plain(a + "q_norm.weight", "BF16", m["q_lora"])
        quantised(a + "wq_b", m["heads"] * HEAD, m["q_lora"])
        quantised(a + "wkv", HEAD, hidden)
        plain(a + "kv_norm.weight", "BF16", HEAD)
        quantised(a + "wo_a", m["o_groups"] * O_LORA, m["heads"] * HEAD // m["o_groups"])
        quantised(a + "wo_b", hidden, m["o_groups"] * O_LORA)
        plain(a + "attn_sink", "F32", m["heads"])
        if ratio:
            compressor(a + "compressor", ratio, HEAD)
        if ratio == 4:
            quantised(a + "indexer.wq_b", 64 * 128, m["q_lora"])
            plain(a + "indexer.weights_proj.weight", "BF16", 64, hidden)
            compressor(a + "indexer.compressor", ratio, 128)
        f = prefix + "ffn."
        plain(f + "gate.weight", "BF16", m["experts"], hidden)
        if hashed:
            plain(f + "gate.tid2eid", "I64", m["vocabulary"], 6)
        else:
            plain(f + "gate.bias", "F32", m["experts"])
        for w, rows, columns in (("w1", m["width"], hidden), ("w2", hidden, m["width"]), ("w3", m["width"], hidden)):
            quantised(f"{f}shared_experts.{w}", rows, columns)
        for e in range(m["experts"]):
            for w, rows, columns in (("w1", m["width"], hidden), ("w2", hidden, m["width"]), ("w3", m["width"], hidden)):
                expert(f"{f}experts.{e}.{w}", rows, columns)

    plain("embed.weight", "BF16", m["vocabulary"], hidden)
    for i in range(m["layers"]):
        layer(f"layers.{i}.", main_ratios[i], i < m["hash_layers"])
    plain("norm.weight", "BF16", hidden)
    plain("head.weight", "BF16", m["vocabulary"], hidden)
    for prefix in ("", "mtp.0."):
        plain(prefix + "hc_head_fn", "F32", 4, 4 * hidden)
        plain(prefix + "hc_head_base", "F32", 4)
        plain(prefix + "hc_head_scale", "F32", 1)
    layer("mtp.0.", 0, False)
    quantised("mtp.0.e_proj", hidden, hidden)
    quantised("mtp.0.h_proj", hidden, hidden)
    for norm in ("enorm", "hnorm", "norm"):
        plain(f"mtp.0.{norm}.weight", "BF16", hidden)

    config = {
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "vocab_size": m["vocabulary"],
        "hidden_size": hidden, "num_hidden_layers": m["layers"], "num_nextn_predict_layers": 1,
        "num_attention_heads": m["heads"], "num_key_value_heads": 1, "head_dim": HEAD, "qk_rope_head_dim": 64,
        "q_lora_rank": m["q_lora"], "o_groups": m["o_groups"], "o_lora_rank": O_LORA, "sliding_window": 128,
        "compress_ratios": m["ratios"], "compress_rope_theta": 160000, "rope_theta": 10000,
        "index_n_heads": 64, "index_head_dim": 128, "index_topk": m["index_topk"],
        "n_routed_experts": m["experts"], "n_shared_experts": 1, "num_experts_per_tok": 6,
        "moe_intermediate_size": m["width"], "num_hash_layers": min(m["hash_layers"], m["layers"]), "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": m["scaling"], "swiglu_limit": 10.0,
        "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 1048576, "torch_dtype": "bfloat16", "expert_dtype": "fp8" if fp8 else "fp4",
        "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32,
                         "beta_slow": 1},
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0",
                                "weight_block_size": [128, 128]},
    }
    return tensors, config, m["shards"]


def num_bytes(tensor):
    size = SIZES[tensor[1]]
    for n in tensor[2]:
        size *= n
    return size


def split(tensors, num_shards):
    """Runs of tensors, about equal in bytes."""
    total, done, shards = sum(map(num_bytes, tensors)), 0, [[] for _ in range(num_shards)]
    for tensor in tensors:
        shards[min(num_shards - 1, done * num_shards // total)].append(tensor)
        done += num_bytes(tensor)
    return [shard for shard in shards if shard]


class Filler:
    """Random bytes from a pool that is read from changing places."""

    POOL = 1 << 20

    def __init__(self, seed):
        rng = random.Random(seed)
        raw = bytearray(rng.randbytes(self.POOL + (1 << 16)))
        self.rng = rng
        self.raw = bytes(raw)
        self.e4m3 = raw.translate(bytes(0x55 if b & 0x7F == 0x7F else b for b in range(256)))
        self.e8m0 = raw.translate(bytes(118 + b % 5 for b in range(256)))
        half = bytearray(raw)
        half[1::2] = half[1::2].translate(bytes((b & 0x80) | (0x3A + b % 3) for b in range(256)))
        self.bf16 = bytes(half)
        wide = bytearray(raw)
        wide[3::4] = wide[3::4].translate(bytes((b & 0x80) | (0x3A + b % 3) for b in range(256)))
        self.f32 = bytes(wide)

    def write(self, file, tensor, experts):
        dtype, left = tensor[1], num_bytes(tensor)
        if dtype == "I64":
            count = left // 8
            ids = bytes(b % experts for b in self.raw[:4096])
            piece = struct.pack("<4096q", *ids)
            for at in range(0, count, 4096):
                file.write(piece[:8 * min(4096, count - at)])
            return
        pool = {"I8": self.raw, "F8_E4M3": self.e4m3, "F8_E8M0": self.e8m0, "BF16": self.bf16, "F32": self.f32}[dtype]
        while left > 0:
            start = self.rng.randrange(0, 1 << 14) * 4
            piece = memoryview(pool)[start:start + min(left, self.POOL)]
            file.write(piece)
            left -= len(piece)


def write_shard(path, tensors, filler, experts):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        header[tensor[0]] = {"dtype": tensor[1], "shape": tensor[2], "data_offsets": [at, at + num_bytes(tensor)]}
        at += num_bytes(tensor)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if filler is None:
            file.truncate(8 + len(text) + at)
        else:
            for tensor in tensors:
                filler.write(file, tensor, experts)


def make(name, output, layers=None, experts=None, fill=False, fp8=False, seed=0, num_shards=None):
    """Returns (number of tensors, bytes of the weights)."""
    tensors, config, published_shards = describe(name, layers, experts, fp8)
    os.makedirs(output, exist_ok=True)
    with open(os.path.join(output, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
    total = sum(map(num_bytes, tensors))
    whole = layers is None and experts is None
    shards = split(tensors, num_shards or (published_shards if whole else max(1, round(total / 3.5e9))))
    filler = Filler(seed) if fill else None
    weight_map = {}
    for i, shard in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(os.path.join(output, file_name), shard, filler, config["n_routed_experts"])
        weight_map.update({tensor[0]: file_name for tensor in shard})
    with open(os.path.join(output, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file)
    return len(tensors), total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("output")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int)
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    count, total = make(args.model, args.output, args.layers, args.experts, args.fill, args.fp8, args.seed)
    print(f"{args.output}: {count} tensors, {total} bytes")


if __name__ == "__main__":
    main()
