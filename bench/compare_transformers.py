#!/usr/bin/env python3
"""Times the same model in fathom and in transformers on this CPU, side by side.

Forward+backward of 64 sequences of 32 tokens (2,048), and greedy decoding of 64 tokens at batch 1, 16
and 64 from prompts of 12 tokens. Random weights. Medians. Prints a table in Markdown.

  .venv-interop/bin/python bench/compare_transformers.py build/model_bench configs/tiny/model.json [threads]
"""
import json
import statistics
import subprocess
import sys
import time

import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM


def median_seconds(repetitions, body):
    body()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def transformers_model(path):
    config = json.load(open(path, encoding="utf-8"))
    config = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "torch_dtype")}
    config["compress_ratios"] = config["compress_ratios"][: config["num_hidden_layers"]]
    config["num_nextn_predict_layers"] = 0
    # HF reads the two rates by layer type; the tiny model's larger ratio is not the release's 128.
    names = {0: "sliding_attention", 4: "compressed_sparse_attention"}
    larger = max(config["compress_ratios"])
    config["layer_types"] = [names.get(r, "heavily_compressed_attention") for r in config["compress_ratios"]]
    config["compress_rates"] = {"compressed_sparse_attention": 4, "heavily_compressed_attention": larger}
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**config, attn_implementation="eager")).float()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("tid2eid"):
            buffer.copy_(torch.randint(0, config["n_routed_experts"], buffer.shape))
    return model, config


def main():
    bench, path = sys.argv[1], sys.argv[2]
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours = {}
    for line in subprocess.run([bench, path, str(threads)], check=True, capture_output=True,
                               text=True).stdout.splitlines():
        row = json.loads(line)
        if "tokens_per_s" in row:
            ours[(row["what"], row.get("batch", 0))] = row["tokens_per_s"]

    model, config = transformers_model(path)
    ids = torch.randint(2, config["vocab_size"], (64, 33))

    def train():
        model.train()
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad()
        loss.backward()

    theirs = {("train", 0): 2048 / median_seconds(3, train)}
    model.eval()
    for batch in (1, 16, 64):
        prompt = torch.randint(2, config["vocab_size"], (batch, 12))

        def decode():
            with torch.no_grad():
                model.generate(input_ids=prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False,
                               use_cache=True, pad_token_id=0)

        theirs[("decode", batch)] = batch * 64 / median_seconds(2, decode)

    print(f"| what | fathom tokens/s | transformers tokens/s | ratio |  ({threads} threads)")
    print("|---|---|---|---|")
    for key in (("train", 0), ("decode", 1), ("decode", 16), ("decode", 64)):
        name = "forward+backward, 2,048 tokens" if key[0] == "train" else f"decode, batch {key[1]}"
        print(f"| {name} | {ours[key]:,.0f} | {theirs[key]:,.0f} | {ours[key] / theirs[key]:.1f} |")


if __name__ == "__main__":
    main()
