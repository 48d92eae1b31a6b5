"""Everything that users get wrong, against the real program.

usage: bad_input.py PATH_TO_FATHOM [--show]

For each case: exit status 1 (the work failed) or 2 (the command line was wrong), one message on standard
error that says what was got, where, and how to mend it, and no output that a later command could take for
whole. Disk full and read-only disks are small memory disks, which only root can mount: without that these
cases are skipped with a line that says so. --show prints every message. Needs Python's standard library alone.
"""

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from program import CONFIGS, GOLDEN, Checks, environment, run, run_ok, tiny_run, work_directory, write_lines  # noqa: E402

OFFICIAL = os.path.join(GOLDEN, "small_official", "model")  # FP4 and FP8, E8M0 scales, shards
BASE = os.path.join(GOLDEN, "small_base", "model")  # FP8, F32 scales, shards
PLAIN = os.path.join(GOLDEN, "small", "model")  # F32, one file


# ---- safetensors files, taken apart and put together -------------------------------------------

def read_safetensors(path):
    with open(path, "rb") as file:
        data = file.read()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    begin = 8 + size
    return {name: [entry["dtype"], entry["shape"], data[begin + entry["data_offsets"][0]:begin + entry["data_offsets"][1]]]
            for name, entry in header.items()}


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


@contextlib.contextmanager
def edited_tensor(directory, name):
    """[dtype, shape, bytes] of a tensor of a model directory, written back at the end; name None drops it."""
    for file in sorted(os.listdir(directory)):
        path = os.path.join(directory, file)
        if file.endswith(".safetensors") and name in (tensors := read_safetensors(path)):
            yield tensors[name]
            if tensors[name][0] is None:
                del tensors[name]
            write_safetensors(path, tensors)
            return
    raise KeyError(name)


@contextlib.contextmanager
def edited_json(path):
    with open(path, encoding="utf-8") as file:
        value = json.load(file)
    yield value
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


# ---- running -----------------------------------------------------------------------------------

class Tester:
    def __init__(self, fathom, work, checks, show):
        self.fathom, self.work, self.checks, self.show = fathom, work, checks, show
        self.num_models = 0

    def path(self, *names):
        return os.path.join(self.work, *names)

    def model(self, source):
        """A copy to spoil."""
        self.num_models += 1
        to = self.path(f"model{self.num_models}")
        shutil.copytree(source, to)
        return to

    def refused(self, what, status, words, *args, fix=True, **kwargs):
        """Runs and checks status, and that the message holds each of `words` (regular expressions)."""
        done = run(self.fathom, *args, **kwargs)
        self.check_message(what, status, words, done.returncode, done.stderr, fix)

    def check_message(self, what, status, words, returncode, stderr, fix=True):
        message = stderr[stderr.find("error:"):] if "error:" in stderr else stderr
        if self.show:
            print(f"--- {what} -> {returncode}\n{message.rstrip()}")
        self.checks.that(returncode == status, f"{what}: exit {returncode} instead of {status}: {message[-600:]!r}")
        self.checks.that(len(re.findall(r"^error:", stderr, re.M)) == 1, f"{what}: not one message: {stderr[-600:]!r}")
        for word in words:
            self.checks.that(re.search(word, message), f"{what}: the message lacks /{word}/: {message[-600:]!r}")
        if fix:
            self.checks.that("fix:" in message, f"{what}: the message tells no mend: {message[-600:]!r}")

    def readers_refuse(self, what, words, model, commands=("score", "prepare-single", "prepare-spmd", "export-hf")):
        """Every command that reads a model directory refuses it, and leaves nothing that looks complete."""
        lines = write_lines(self.path("ids.jsonl"), [{"token_ids": [1, 2, 3]}])
        out = self.path("out")
        for command in commands:
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            target = os.path.join(out, "result")
            self.refused(f"{command}: {what}", 1, words, *{
                "score": ["score", "--hf-checkpoint", model, "--input", lines, "--output", target],
                "prepare-single": ["prepare-single", "--input-fp8-hf-path", model, "--output-bf16-hf-path", target],
                "prepare-spmd": ["prepare-spmd", "--model-name", "x", "--hf-checkpoint", model, "--save", target],
                "export-hf": ["export-hf", "--load", model, "--output", target],
            }[command], fix=False)
            self.checks.that(not self.looks_complete(target), f"{command}: {what}: left what looks complete: {os.listdir(out)}")

    @staticmethod
    def looks_complete(target):
        """What readers go by: the file itself, an index or a single file of weights, a tracker."""
        if os.path.isfile(target):
            return True
        return any(os.path.exists(os.path.join(target, name)) for name in
                   ("model.safetensors.index.json", "model.safetensors", "latest_checkpointed_iteration.txt"))


# ---- the cases ---------------------------------------------------------------------------------

def check_tensors(t):
    name = "layers.1.attn.wq_a.weight"
    model = t.model(OFFICIAL)
    with edited_tensor(model, name) as tensor:
        tensor[0] = None
    t.readers_refuse("a missing tensor", [re.escape(name)], model)

    model = t.model(OFFICIAL)
    with edited_json(os.path.join(model, "model.safetensors.index.json")) as index:
        del index["weight_map"][name]
    with edited_tensor(model, name) as tensor:
        tensor[0] = None
    t.readers_refuse("a tensor missing from index and file", [re.escape(name)], model)

    model = t.model(OFFICIAL)
    os.remove(os.path.join(model, "model-00002-of-00003.safetensors"))
    t.readers_refuse("a missing shard", ["model-00002-of-00003.safetensors"], model)

    model = t.model(PLAIN)
    with edited_tensor(model, name) as tensor:
        tensor[1] = [tensor[1][1], tensor[1][0]]
    t.readers_refuse("a wrong-shaped tensor", [re.escape(name), r"\[64, ?128\]", r"\[128, ?64\]"], model)

    model = t.model(BASE)
    with edited_tensor(model, "layers.1.attn.wq_b.scale") as tensor:
        rows, columns = tensor[1]
        tensor[1] = [rows * columns, 1] if columns > 1 else [1, rows]
    t.readers_refuse("a wrong-shaped scale", [r"layers\.1\.attn\.wq_b"], model)

    model = t.model(BASE)
    with edited_tensor(model, "layers.1.attn.wq_b.scale") as tensor:
        tensor[0] = None
    with edited_json(os.path.join(model, "model.safetensors.index.json")) as index:
        del index["weight_map"]["layers.1.attn.wq_b.scale"]
    t.readers_refuse("a missing scale", [r"layers\.1\.attn\.wq_b"], model)

    for size in (3, 100, -1000):
        model = t.model(OFFICIAL)
        path = os.path.join(model, "model-00001-of-00003.safetensors")
        os.truncate(path, size if size > 0 else os.path.getsize(path) + size)
        t.readers_refuse(f"a file cut to {size} bytes", ["model-00001-of-00003.safetensors"], model)

    model = t.model(PLAIN)
    path = os.path.join(model, "model.safetensors")
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", 1 << 60))
    t.readers_refuse("a header longer than the file", [r"model\.safetensors"], model)

    model = t.model(PLAIN)
    with open(os.path.join(model, "model.safetensors"), "r+b") as file:
        file.seek(8)
        file.write(b"not json")
    t.readers_refuse("a header that is not JSON", [r"model\.safetensors"], model)


def check_scales(t):
    name = "layers.1.ffn.experts.2.w1.scale"
    for what, value in (("NaN", math.nan), ("infinite", math.inf)):
        model = t.model(BASE)
        with edited_tensor(model, name) as tensor:
            tensor[2] = struct.pack("<f", value) + tensor[2][4:]
        t.readers_refuse(f"a scale that is {what}", [r"layers\.1\.ffn\.experts\.2\.w1"], model)
    model = t.model(OFFICIAL)
    with edited_tensor(model, name) as tensor:
        tensor[2] = b"\xff" + tensor[2][1:]
    t.readers_refuse("an E8M0 scale that is NaN", [r"layers\.1\.ffn\.experts\.2\.w1"], model)
    model = t.model(BASE)
    with edited_tensor(model, "layers.1.ffn.experts.2.w1.weight") as tensor:
        tensor[2] = tensor[2][:5] + b"\x7f" + tensor[2][6:]
    # A cast passes codes on; who would compute with them refuses.
    t.readers_refuse("an FP8 code that is NaN", [r"layers\.1\.ffn\.experts\.2\.w1"], model,
                     ("score", "prepare-spmd", "export-hf"))


def check_quantisation(t):
    model = t.model(OFFICIAL)
    with edited_json(os.path.join(model, "config.json")) as config:
        config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    t.readers_refuse("an unknown quantisation", ["awq"], model)
    model = t.model(BASE)
    with edited_tensor(model, "layers.1.attn.wq_b.weight") as tensor:
        tensor[0] = "F8_E5M2"
    t.readers_refuse("an unknown number format", [r"layers\.1\.attn\.wq_b", "F8_E5M2"], model)


def check_config(t):
    def spoiled(change):
        model = t.model(PLAIN)
        with edited_json(os.path.join(model, "config.json")) as config:
            change(config)
        return model

    cases = {
        "no hidden_size": (lambda c: c.pop("hidden_size"), ["hidden_size"]),
        "a text for a number": (lambda c: c.update(num_hidden_layers="four"), ["num_hidden_layers"]),
        "a negative size": (lambda c: c.update(head_dim=-64), ["head_dim", "-64"]),
        "a size of zero": (lambda c: c.update(vocab_size=0), ["vocab_size"]),
        "an enormous size": (lambda c: c.update(hidden_size=1 << 40), ["hidden_size"]),
        "too few ratios": (lambda c: c.update(compress_ratios=[0, 4]), ["compress_ratios"]),
        "no ratios at all": (lambda c: c.pop("compress_ratios"), ["compress_ratios|layer_types"]),
        "another architecture": (lambda c: c.update(model_type="llama", architectures=["LlamaForCausalLM"]), ["llama"]),
        "more experts a token than experts": (lambda c: c.update(num_experts_per_tok=7), ["num_experts_per_tok"]),
        "heads that no group divides": (lambda c: c.update(o_groups=3), ["o_groups"]),
        "an unknown scoring function": (lambda c: c.update(scoring_func="softplus2"), ["scoring_func", "softplus2"]),
        "other sizes than the tensors": (lambda c: c.update(moe_intermediate_size=32), [r"layers\.0\.ffn", r"\[64, ?128\]"]),
        "more layers than the tensors": (lambda c: c.update(num_hidden_layers=5, compress_ratios=[0, 4, 16, 4, 4, 0]),
                                         [r"layers\.4\."]),
    }
    for what, (change, words) in cases.items():
        # A cast changes tensors one by one and need not know the sizes.
        t.readers_refuse(f"config.json: {what}", words, spoiled(change), ("score", "prepare-spmd", "export-hf"))
    model = t.model(PLAIN)
    with open(os.path.join(model, "config.json"), "w", encoding="utf-8") as file:
        file.write('{"hidden_size": 128,')
    t.readers_refuse("a config.json that is not JSON", [r"config\.json"], model)
    os.remove(os.path.join(model, "config.json"))
    t.readers_refuse("no config.json", [r"config\.json"], model)
    t.readers_refuse("no such directory", ["nowhere"], t.path("nowhere"))


def check_data(t):
    good = {"prompt": "1+2+3+4=", "label": "10"}
    cases = {
        "a line that is not JSON": ('{"prompt": "1+1=", ', []),
        "a line that is no object": ([1, 2], []),
        "no label": ({"prompt": "1+1+1+1="}, ["label"]),
        "no prompt": ({"label": "4"}, ["prompt"]),
        "a prompt that is a number": ({"prompt": 5, "label": "4"}, ["prompt"]),
        "a label that is an object": ({"prompt": "1+1+1+1=", "label": {"a": 1}}, ["label"]),
        "bytes that are no text": (None, []),
    }
    for i, (what, (line, words)) in enumerate(cases.items()):
        path = t.path(f"prompts{i}.jsonl")
        write_lines(path, [good, good, line if line is not None else "@", good])
        if line is None:
            with open(path, "r+b") as file:
                data = file.read().replace(b"@", b'{"prompt": "\xff\xfe", "label": "1"}')
                file.seek(0)
                file.write(data)
        expected = [re.escape(os.path.basename(path)), r"line 3\b", *words]
        t.refused(f"training data: {what}", 1, expected,
                  *tiny_run(t.work, f"data{i}", prompt_data=path, rollout_batch_size=2))
        t.refused(f"held-out data: {what}", 1, expected, *tiny_run(t.work, f"eval{i}", eval_prompt_data=["x", path]))
        t.checks.that(not os.path.exists(t.path("runs", f"data{i}", "checkpoints", "latest_checkpointed_iteration.txt")),
                      f"training data: {what}: a run without data saved a checkpoint")
    empty = write_lines(t.path("empty.jsonl"), [])
    t.refused("training data: empty", 1, ["empty.jsonl", "no prompt"],
              *tiny_run(t.work, "empty", prompt_data=empty), fix=False)
    t.refused("training data: no such file", 1, ["nowhere.jsonl"],
              *tiny_run(t.work, "nodata", prompt_data=t.path("nowhere.jsonl")), fix=False)
    # Skipping is asked for by name, and then works.
    path = t.path("prompts0.jsonl")
    done = run(t.fathom, *tiny_run(t.work, "skipped", num_rollout=1, prompt_data=path, rollout_batch_size=2),
               "--skip-bad-lines")
    t.checks.that(done.returncode == 0 and re.search(r"\b1\b.*(bad|skipp)", done.stdout + done.stderr),
                  f"--skip-bad-lines: exit {done.returncode}, {done.stderr[-300:]!r}")


def check_checkpoints(t):
    """A damaged checkpoint of a run is an error, not a fresh start."""
    run_ok(t.fathom, *tiny_run(t.work, "fine", num_rollout=1))

    def damaged(run_id, change):
        shutil.copytree(t.path("runs", "fine"), t.path("runs", run_id))
        checkpoints = t.path("runs", run_id, "checkpoints")
        change(checkpoints, os.path.join(checkpoints, "iter_0000000"))
        return tiny_run(t.work, run_id, num_rollout=2)

    def cut(path, size):
        os.truncate(path, size)

    def flip_bit(path):
        with open(path, "r+b") as file:
            file.seek(200000)
            byte = file.read(1)
            file.seek(200000)
            file.write(bytes([byte[0] ^ 0x40]))

    data, tracker = "__0_0.distcp", "latest_checkpointed_iteration.txt"
    cases = {
        "cut_data": lambda _, step: cut(os.path.join(step, data), 500000),
        "lost_data": lambda _, step: os.remove(os.path.join(step, data)),
        "flipped_bit": lambda _, step: flip_bit(os.path.join(step, data)),
        "cut_metadata": lambda _, step: cut(os.path.join(step, ".metadata"), 1000),
        "cut_state": lambda _, step: cut(os.path.join(step, "training_state.json"), 100),
        "lost_state": lambda _, step: os.remove(os.path.join(step, "training_state.json")),
        "lost_step": lambda _, step: shutil.rmtree(step),
        "spoiled_tracker": lambda checkpoints, _: write_lines(os.path.join(checkpoints, tracker), ["soon"]),
    }
    for name, change in cases.items():
        t.refused(f"checkpoint: {name}", 1, [f"iter_0000000|{tracker}"], *damaged(name, change), fix=False)


def check_second_process(t):
    words = tiny_run(t.work, "shared", num_rollout=40)
    first = subprocess.Popen([t.fathom, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(),
                             text=True)
    metrics = t.path("runs", "shared", "metrics.jsonl")
    while not os.path.exists(metrics) and first.poll() is None:
        time.sleep(0.01)
    second = run(t.fathom, *words)
    alive = first.poll() is None
    t.check_message("a second process on the same run directory", 1, ["another process", "shared"], second.returncode,
                    second.stderr)
    t.checks.that(alive, f"the first process ended before the second: {first.returncode}")
    first.kill()
    first.wait()
    # The lock goes with its holder.
    run_ok(t.fathom, *words, "--debug-exit-after-rollout", 1)


def check_options(t):
    def train(*args):
        return [*tiny_run(t.work, "options"), *map(str, args)]

    cases = {
        "an unknown flag": (train("--rollout-tempreature", 1), ["--rollout-tempreature", "--rollout-temperature"]),
        "a value out of range": (train("--rollout-top-p", 1.5), ["--rollout-top-p", r"1\.5"]),
        "a text for a number": (train("--n-samples-per-eval-prompt", "many"), ["--n-samples-per-eval-prompt", "many"]),
        "an unknown choice": (train("--lr-decay-style", "steep"), ["--lr-decay-style", "steep", "cosine"]),
        "a value that is missing": (train("--lr"), ["--lr"]),
        "three errors at once": (train("--lr", "x", "--eps-clip", 7, "--bogus", 1), ["3 problems", "--lr", "--eps-clip", "--bogus"]),
        "a feature that is not built": (train("--use-tis"), ["--use-tis", "not built"]),
        "a layout without its ranks": (train("--tensor-model-parallel-size", 2), ["--tensor-model-parallel-size 2", "1 ranks", "multiple of 2"]),
        "another feature that is not built": (train("--advantage-estimator", "ppo"), ["--advantage-estimator", "ppo"]),
        "ranks on GPUs and on CPUs": (train("--num-procs", 1, "--num-gpus-per-node", 2), ["--num-procs", "--num-gpus-per-node"]),
        "a precision against --train-fp8": (train("--precision", "fp32", "--train-fp8"), ["--train-fp8"]),
        "batches that do not divide": (train("--global-batch-size", 100), ["--global-batch-size", "100"]),
        "batch size against steps": (train("--global-batch-size", 64, "--num-steps-per-rollout", 2),
                                     ["--global-batch-size", "--num-steps-per-rollout"]),
        "a flag given twice": (train("--num-rollout", 7), ["--num-rollout", "twice"]),
        "no input": (["score", "--hf-checkpoint", PLAIN], ["--input", "--output"]),
        "no subcommand": (["trian"], ["trian", "train"]),
        "a recipe that is not there": (["full-train", "--config", t.path("nowhere.json")], [r"nowhere\.json"]),
        "a recipe with an unknown name": (["full-train", "--config", write_recipe(t, bogus=1)], ["bogus"]),
    }
    for what, (args, words) in cases.items():
        t.refused(f"options: {what}", 2, words, *args, fix=False)
    t.refused("options: an environment variable out of range", 2, ["MILES_SCRIPT_LR|--lr"], *tiny_run(t.work, "env"),
              fix=False, env=environment(MILES_SCRIPT_ADAM_BETA1="2", MILES_SCRIPT_LR="x"))
    t.checks.that(not os.path.exists(t.path("runs", "options")), "wrong options made a run directory")


def write_recipe(t, **added):
    with open(os.path.join(CONFIGS, "tiny_cpu.json"), encoding="utf-8") as file:
        return write_lines(t.path("recipe.json"), [{**json.load(file), **added}])


# ---- disks -------------------------------------------------------------------------------------

@contextlib.contextmanager
def memory_disk(path, options):
    """A disk of its own at `path`; None where this user cannot mount one."""
    os.makedirs(path, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"SKIPPED, needs root: disk of {options}: {done.stderr.strip()}")
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def writers(t, out):
    """Commands that write, each into `out`."""
    lines = write_lines(t.path("many.jsonl"), [{"token_ids": list(range(2, 250))} for _ in range(8)])
    small = {"model-dir": t.path("models"), "data-dir": t.path("data")}
    return {
        "score": ["score", "--hf-checkpoint", PLAIN, "--input", lines, "--output", os.path.join(out, "s"), "--with-logits",
                  "--with-gradients"],
        "generate": ["generate", "--hf-checkpoint", PLAIN, "--input", lines, "--output", os.path.join(out, "g"),
                     "--num-samples", 20, "--ignore-eos"],
        "prepare-single": ["prepare-single", "--input-fp8-hf-path", OFFICIAL, "--output-bf16-hf-path", os.path.join(out, "c")],
        "prepare-spmd": ["prepare-spmd", "--model-name", "x", "--hf-checkpoint", OFFICIAL, "--save", os.path.join(out, "d")],
        "export-hf": ["export-hf", "--load", OFFICIAL, "--output", os.path.join(out, "e")],
        "full-train": [a if a != t.path("runs") else os.path.join(out, "runs") for a in tiny_run(t.work, "r", 2, **{
            k.replace("-", "_"): v for k, v in small.items()})],
    }


def files_of(path):
    return {os.path.relpath(os.path.join(d, n), path) for d, _, names in os.walk(path) for n in names}


def check_disk_full(t):
    disk = t.path("disk")
    for name in writers(t, disk):
        with memory_disk(disk, "size=256k") as mounted:
            if mounted is None:
                return
            args = writers(t, mounted)[name]
            done = run(t.fathom, *args)
            t.check_message(f"{name}: disk full", 1, ["[Nn]o space left|bytes free", re.escape(mounted)], done.returncode, done.stderr)
            for target in ("s", "g", "c", "d", "e"):
                t.checks.that(not t.looks_complete(os.path.join(mounted, target)),
                              f"{name}: disk full: what is left looks complete: {sorted(files_of(mounted))}")
            left = [f for f in files_of(mounted) if "iter_" in f or f.endswith("latest_checkpointed_iteration.txt")]
            t.checks.that(not left, f"{name}: disk full: half a checkpoint is left: {left[:5]}")
            # With room again, the same command ends well and its result is the whole one.
            subprocess.run(["mount", "-o", "remount,size=200m", mounted], check=True)
            run_ok(t.fathom, *args)
            whole = t.path("whole")
            shutil.rmtree(whole, ignore_errors=True)
            os.makedirs(whole)
            run_ok(t.fathom, *writers(t, whole)[name])
            compare_trees(t, f"{name}: after a full disk", whole, mounted)


def compare_trees(t, what, a, b):
    """Same files with the same bytes, but for those that hold times or paths."""
    names = files_of(a)
    t.checks.that(names, f"{what}: nothing to compare")
    varying = re.compile(r"tensorboard/|run\.log$|metrics\.jsonl$|r/config\.json$")
    t.checks.that({n for n in names if "tensorboard" not in n} == {n for n in files_of(b) if "tensorboard" not in n},
                  f"{what}: other files: {sorted(names ^ files_of(b))[:6]}")
    for name in sorted(names & files_of(b)):
        if varying.search(name):
            continue
        with open(os.path.join(a, name), "rb") as x, open(os.path.join(b, name), "rb") as y:
            t.checks.that(x.read() == y.read(), f"{what}: {name} differs")


def check_unwritable(t):
    blocked = t.path("a_file")
    write_lines(blocked, ["in the way"])
    for name, args in writers(t, os.path.join(blocked, "below")).items():
        t.refused(f"{name}: a file where a directory is needed", 1, [re.escape(blocked)], *args)
    disk = t.path("readonly")
    with memory_disk(disk, "size=1m,ro") as mounted:
        if mounted is not None:
            for name, args in writers(t, mounted).items():
                t.refused(f"{name}: a read-only directory", 1, ["[Rr]ead-only", re.escape(mounted)], *args)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    checks = Checks()
    with work_directory("bad_input") as work:
        tester = Tester(args.fathom, work, checks, args.show)
        for check in (check_tensors, check_scales, check_quantisation, check_config, check_data, check_checkpoints,
                      check_second_process, check_options, check_disk_full, check_unwritable):
            if args.only in check.__name__:
                check(tester)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
