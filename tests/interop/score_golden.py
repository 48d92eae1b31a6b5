"""`fathom score` and `fathom generate` against the golden cases, and how they refuse bad input.

usage: score_golden.py PATH_TO_FATHOM

The library's numbers lie in tests/golden (its README says how they were made). Bounds: 1e-4 absolute for
logits, log-probs and the loss, 1e-3 relative (L2, per tensor) for gradients, equality for greedy tokens.
"""

import json
import os
import re
import shutil
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from program import GOLDEN, Checks, read_lines, run, run_ok, work_directory, write_lines

# Gradients that the loss cannot reach.
UNREACHED = re.compile(r"\.indexer\.|gate\.bias$|tid2eid$|^mtp\.")


def max_difference(a, b):
    return float(np.abs(a.astype(np.float64) - b).max()) if a.size else 0.0


def compare(checks, what, got, want, bound):
    if checks.that(got.dtype == np.float32 and got.shape == want.shape,
                   f"{what}: {got.dtype} {got.shape} instead of float32 {want.shape}"):
        difference = max_difference(got, want)
        # `not <=` so that NaN fails.
        checks.that(difference <= bound, f"{what}: off by {difference:.3g}, allowed {bound:g}")


def check_scores(checks, fathom, name, work):
    model = os.path.join(GOLDEN, name, "model")
    case = load_file(os.path.join(GOLDEN, name, "case.safetensors"))
    ids = [case[f"ids.{i}"].tolist() for i in range(2)]
    has_mtp = "mtp_logits.0" in case
    lines = write_lines(os.path.join(work, "ids.jsonl"), [{"token_ids": i} for i in ids])
    out = os.path.join(work, "out.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out, "--with-logits",
           *(["--with-mtp"] if has_mtp else []))
    scored = load_file(out)
    kinds = ["logits", "logprobs"] + (["mtp_logits"] if has_mtp else [])
    checks.that(sorted(scored) == sorted(f"{kind}.{i}" for kind in kinds for i in range(2)),
                f"{name}: tensors {sorted(scored)}")
    for key in sorted(set(scored) & set(case)):
        compare(checks, f"{name} {key}", scored[key], case[key], 1e-4)

    # Without --with-logits and with one thread the log-probs are the same bits.
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out, "--threads", 1)
    for i in range(2):
        checks.that(np.array_equal(load_file(out)[f"logprobs.{i}"], scored[f"logprobs.{i}"]),
                    f"{name} logprobs.{i}: not the same bits without logits and with one thread")

    # The golden gradient is that of the last sequence alone.
    lines = write_lines(os.path.join(work, "last.jsonl"), [{"token_ids": ids[1]}])
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out, "--with-gradients")
    scored = load_file(out)
    compare(checks, f"{name} loss", scored["loss"], case["loss.1"], 1e-4)
    norms = {key[len("grad_norm."):]: float(case[key].reshape(-1)[0]) for key in case if key.startswith("grad_norm.")}
    for tensor, norm in sorted(norms.items()):
        got = scored.get(f"grad.{tensor}")
        if got is None:
            checks.that(UNREACHED.search(tensor), f"{name} grad.{tensor} is missing")
            continue
        got_norm = float(np.linalg.norm(got.astype(np.float64)))
        checks.that(abs(got_norm - norm) <= 1e-3 * norm + 1e-12,
                    f"{name} grad.{tensor}: norm {got_norm:.6g} instead of {norm:.6g}")
        want = case.get(f"grad.{tensor}")
        if want is not None and checks.that(got.shape == want.shape,
                                            f"{name} grad.{tensor}: {got.shape} instead of {want.shape}"):
            error = float(np.linalg.norm(got.astype(np.float64) - want))
            checks.that(error <= 1e-3 * np.linalg.norm(want.astype(np.float64)) + 1e-12,
                        f"{name} grad.{tensor}: differs by {error:.3g} (L2) at norm {norm:.3g}")
    # Every trainable tensor of the file has its gradient, in its own shape.
    for tensor, value in load_file_shapes(os.path.join(model, "model.safetensors")).items():
        if not UNREACHED.search(tensor):
            checks.that(f"grad.{tensor}" in scored and list(scored[f"grad.{tensor}"].shape) == value,
                        f"{name}: no grad.{tensor} of shape {value}")


def load_file_shapes(path):
    with safe_open(path, "np") as file:
        return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}


def check_mean_loss(checks, fathom, work):
    """loss and gradients of two lines: the mean over all predicted tokens, not over lines."""
    model = os.path.join(GOLDEN, "small", "model")
    case = load_file(os.path.join(GOLDEN, "small", "case.safetensors"))
    lines = write_lines(os.path.join(work, "two.jsonl"), [{"token_ids": case[f"ids.{i}"].tolist()} for i in range(2)])
    out = os.path.join(work, "two.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out, "--with-gradients")
    scored = load_file(out)
    want = -np.concatenate([case["logprobs.0"], case["logprobs.1"]]).astype(np.float64).mean()
    compare(checks, "loss of two lines", scored["loss"], np.array([want]), 1e-4)
    ids = case["ids.0"].tolist() + case["ids.1"].tolist()
    rows = np.linalg.norm(scored["grad.embed.weight"].astype(np.float64), axis=1)
    unseen = sorted(set(range(rows.size)) - set(ids))
    checks.that(unseen and not rows[unseen].any(), "grad.embed.weight: not zero at ids that no line holds")
    checks.that(rows[ids[0]] > 0, "grad.embed.weight: zero at the first id")


def check_one_token(checks, fathom, work):
    model = os.path.join(GOLDEN, "small", "model")
    lines = write_lines(os.path.join(work, "one.jsonl"), [{"token_ids": [5]}, {"token_ids": [5, 7]}])
    out = os.path.join(work, "one.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out, "--with-logits", "--with-mtp",
           "--with-gradients")
    shapes = {key: value.shape for key, value in load_file(out).items() if not key.startswith("grad.")}
    want = {"logprobs.0": (0,), "logits.0": (1, 256), "mtp_logits.0": (0, 256), "logprobs.1": (1,),
            "logits.1": (2, 256), "mtp_logits.1": (1, 256), "loss": (1,)}
    checks.that(shapes == want, f"a line of one token: {shapes} instead of {want}")


def check_long_input(checks, fathom, work):
    """score computes inputs beyond 8,192 tokens in chunks; generate cuts the same tokens elsewhere."""
    model = os.path.join(work, "long")
    shutil.copytree(os.path.join(GOLDEN, "small", "model"), model)
    path = os.path.join(model, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config["max_position_embeddings"] = 16384
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    prompt = np.random.default_rng(0).integers(2, 256, 8500).tolist()
    lines = write_lines(os.path.join(work, "long.jsonl"), [{"token_ids": prompt}])
    out = os.path.join(work, "long_answers.jsonl")
    run_ok(fathom, "generate", "--hf-checkpoint", model, "--input", lines, "--output", out, "--temperature", 0,
           "--max-new-tokens", 8, "--ignore-eos", "--chunked-prefill-size", 1000)
    answer = read_lines(out)[0]
    lines = write_lines(os.path.join(work, "long2.jsonl"), [{"token_ids": prompt + answer["token_ids"]},
                                                            {"token_ids": prompt[:8000]}])
    out = os.path.join(work, "long.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out)
    scored = load_file(out)
    checks.that(np.array_equal(np.array(answer["logprobs"], np.float32), scored["logprobs.0"][8499:]),
                "a long input: score and generate, which cut it into other chunks, differ in bits")
    checks.that(np.array_equal(scored["logprobs.0"][:7999], scored["logprobs.1"]),
                "a long input: what follows changes the log-probs of what came before")


def check_greedy(checks, fathom, name, work):
    model = os.path.join(GOLDEN, name, "model")
    case = load_file(os.path.join(GOLDEN, name, "case.safetensors"))
    prompt, want = case["greedy.prompt"].tolist(), case["greedy.tokens"].tolist()
    # The prompt among others of other lengths, so that batches and chunks mix.
    others = [prompt[:3], prompt + want[:5], [9], prompt]
    lines = write_lines(os.path.join(work, "prompts.jsonl"), [{"token_ids": p} for p in [prompt, *others]])
    out = os.path.join(work, "answers.jsonl")
    first = None
    for running, chunk in [(64, 8192), (1, 1), (2, 5), (3, 16)]:
        run_ok(fathom, "generate", "--hf-checkpoint", model, "--input", lines, "--output", out, "--temperature", 0,
               "--max-new-tokens", len(want), "--ignore-eos", "--max-running-requests", running,
               "--chunked-prefill-size", chunk)
        answers = read_lines(out)
        setting = f"{name} greedy, {running} running, chunks of {chunk}"
        checks.that([a["index"] for a in answers] == list(range(5)), f"{setting}: order of answers")
        for i in (0, 4):
            checks.that(answers[i]["token_ids"] == want, f"{setting}: {answers[i]['token_ids']} instead of {want}")
        checks.that(answers[2]["token_ids"][:len(want) - 5] == want[5:], f"{setting}: answer 2 leaves the path")
        checks.that(all(a["finish_reason"] == "length" for a in answers), f"{setting}: finish reasons")
        first = first or answers
        checks.that(answers == first, f"{setting}: not the same bits as with 64 running")
    # The log-probs of greedy answers are those of temperature 1: what score gives for the same tokens.
    lines = write_lines(os.path.join(work, "joined.jsonl"),
                        [{"token_ids": p + a["token_ids"]} for p, a in zip([prompt, *others], first)])
    out = os.path.join(work, "joined.safetensors")
    run_ok(fathom, "score", "--hf-checkpoint", model, "--input", lines, "--output", out)
    scored = load_file(out)
    for i, (p, answer) in enumerate(zip([prompt, *others], first)):
        got = np.array(answer["logprobs"], np.float32)
        checks.that(np.array_equal(got, scored[f"logprobs.{i}"][len(p) - 1:]),
                    f"{name}: log-probs of answer {i} are not the bits that score gives")


def check_refusals(checks, fathom, work):
    model = os.path.join(GOLDEN, "small", "model")
    good = {"token_ids": [1, 2, 3]}
    bad_lines = {
        "not JSON": '{"token_ids": [1, 2',
        "an empty list": {"token_ids": []},
        "no token_ids": {"tokens": [1]},
        "a text for a list": {"token_ids": "1 2"},
        "an id that is no integer": {"token_ids": [1, 2.5]},
        "a negative id": {"token_ids": [1, -1]},
        "an id out of range": {"token_ids": [256]},
        "a sequence longer than the model": {"token_ids": [1] * 1025},
    }
    for command, suffix in (("score", "safetensors"), ("generate", "jsonl")):
        for what, line in bad_lines.items():
            out = os.path.join(work, f"refused.{suffix}")
            path = write_lines(os.path.join(work, "bad.jsonl"), [good, good, line, good])
            done = run(fathom, command, "--hf-checkpoint", model, "--input", path, "--output", out)
            checks.that(done.returncode == 1, f"{command} with {what}: exit {done.returncode}")
            checks.that(re.search(r"line 3\b|:3\b", done.stderr) and "bad.jsonl" in done.stderr,
                        f"{command} with {what}: the message does not name line 3 of the file: {done.stderr!r}")
            checks.that(not any(name.startswith("refused.") for name in os.listdir(work)),
                        f"{command} with {what}: left an output file")
        done = run(fathom, command, "--hf-checkpoint", model, "--inptu", "x", "--output", os.path.join(work, "x"))
        checks.that(done.returncode == 2 and "--inptu" in done.stderr and re.search(r"--input\b", done.stderr),
                    f"{command} --inptu: exit {done.returncode}, {done.stderr!r}")
    done = run(fathom, "score", "--hf-checkpoint", os.path.join(GOLDEN, "release_shapes", "model"), "--input",
               write_lines(os.path.join(work, "good.jsonl"), [good]), "--output",
               os.path.join(work, "refused.safetensors"), "--with-mtp")
    checks.that(done.returncode == 1 and "mtp" in done.stderr.lower(),
                f"--with-mtp without an MTP block: exit {done.returncode}, {done.stderr!r}")


def main():
    fathom = sys.argv[1]
    checks = Checks()
    with work_directory("score_golden") as work:
        for name in ("small", "release_shapes"):
            check_scores(checks, fathom, name, work)
            check_greedy(checks, fathom, name, work)
        check_mean_loss(checks, fathom, work)
        check_one_token(checks, fathom, work)
        check_long_input(checks, fathom, work)
        check_refusals(checks, fathom, work)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
