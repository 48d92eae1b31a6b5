"""Checkpoint directories that are broken, hostile or pulled away: one clear error each, exit 1, nothing published.

usage: bad_checkpoints.py PATH_TO_FATHOM [--show]

What bad_input.py does for tensors, this does for directories: symbolic links and names that lead outside, tensors in
two shards, an index that disagrees, trackers that are wrong, half-written checkpoints, a read-only and a full disk, a
limit on the size of files, a file that is cut while it is read. Needs Python's standard library; as root it also
mounts small memory disks.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))
import synthetic_checkpoint  # noqa: E402
from bad_input import OFFICIAL, Tester, edited_json, edited_tensor, memory_disk  # noqa: E402
from program import Checks, environment, run, run_ok, work_directory  # noqa: E402

INDEX = "model.safetensors.index.json"
TRACKER = "latest_checkpointed_iteration.txt"


def published(target):
    return (Tester.looks_complete(target) or os.path.isdir(os.path.join(target, "release")))


def convert(t, target, model=OFFICIAL):
    return ["prepare-spmd", "--model-name", "x", "--hf-checkpoint", model, "--save", target, "--model-dir", t.path("models")]


# ---- model directories -------------------------------------------------------------------------

def check_index(t):
    first = "model-00001-of-00003.safetensors"
    for name in ("../" + first, "/etc/" + first, "sub/" + first, "..", first + "\u0000.safetensors", ""):
        model = t.model(OFFICIAL)
        with edited_json(os.path.join(model, INDEX)) as index:
            index["weight_map"]["embed.weight"] = name
        t.readers_refuse(f"a shard called {name!r}", ["weight_map"], model)

    model = t.model(OFFICIAL)
    with edited_json(os.path.join(model, INDEX)) as index:
        shard = index["weight_map"]["embed.weight"]
        index["weight_map"]["embed.weight"] = next(s for s in index["weight_map"].values() if s != shard)
    t.readers_refuse("an index that names the wrong shard", [r"embed\.weight", "lacks it"], model)

    model = t.model(OFFICIAL)
    path = os.path.join(model, INDEX)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    at = text.index('"weight_map": {') + len('"weight_map": {')
    with open(path, "w", encoding="utf-8") as file:
        file.write(text[:at] + f'"embed.weight": "{first}", ' + text[at:])
    t.readers_refuse("a tensor twice in the index", ["embed.weight", "twice"], model)

    # The same tensor in two shards: the index decides, and the other one is told of.
    model = t.model(OFFICIAL)
    with open(os.path.join(model, INDEX), encoding="utf-8") as file:
        weight_map = json.load(file)["weight_map"]
    other = next(s for s in sorted(set(weight_map.values())) if s != weight_map["norm.weight"])
    source = os.path.join(model, weight_map["norm.weight"])
    with edited_tensor(model, "norm.weight") as tensor:
        copy = [tensor[0], list(tensor[1]), bytes(len(tensor[2]))]
    add_tensor(os.path.join(model, other), "norm.weight", copy)
    assert os.path.exists(source)
    clean, doubled = t.path("clean"), t.path("doubled")
    run_ok(t.fathom, *convert(t, clean))
    done = run_ok(t.fathom, *convert(t, doubled, model))
    t.checks.that("norm.weight in " + other in done.stderr, f"a tensor in two shards: no note of it: {done.stderr[-500:]}")
    compare_payload(t, "a tensor in two shards", clean, doubled)

    # A symbolic link to a shard is how the hub's cache looks, and is read; one to nowhere is not.
    model = t.model(OFFICIAL)
    real = os.path.join(t.work, "elsewhere.safetensors")
    shutil.move(os.path.join(model, first), real)
    os.symlink(real, os.path.join(model, first))
    linked = t.path("linked")
    run_ok(t.fathom, *convert(t, linked, model))
    compare_payload(t, "a linked shard", clean, linked)
    os.remove(real)
    t.readers_refuse("a link to nowhere", [first], model)


def add_tensor(path, name, tensor):
    from bad_input import read_safetensors, write_safetensors
    tensors = read_safetensors(path)
    tensors[name] = tensor
    write_safetensors(path, tensors)


def compare_payload(t, what, a, b):
    for name in sorted(n for n in os.listdir(os.path.join(a, "release")) if n.endswith(".distcp")):
        with open(os.path.join(a, "release", name), "rb") as x, open(os.path.join(b, "release", name), "rb") as y:
            t.checks.that(x.read() == y.read(), f"{what}: {name} differs")


# ---- torch_dist directories --------------------------------------------------------------------

def check_torch_dist(t):
    good = t.path("good")
    run_ok(t.fathom, *convert(t, good))
    count = 0

    def spoiled(change):
        nonlocal count
        count += 1
        directory = t.path(f"torch_dist{count}")
        shutil.copytree(good, directory)
        change(directory, os.path.join(directory, "release"))
        return directory

    def refuses(what, words, change):
        directory = spoiled(change)
        target = t.path("exported")
        shutil.rmtree(target, ignore_errors=True)
        t.refused(f"export-hf: {what}", 1, words, "export-hf", "--load", directory, "--hf-checkpoint", OFFICIAL, "--output",
                  target, fix=False)
        t.checks.that(not published(target), f"{what}: something was published")

    def put(directory, name, text):
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)

    def linked(directory, release, name):
        outside = directory + ".outside"
        shutil.move(os.path.join(release, name), outside)
        os.symlink(outside, os.path.join(release, name))

    payload = next(n for n in os.listdir(os.path.join(good, "release")) if n.endswith(".distcp"))
    refuses("a linked payload file", ["not a regular file", payload], lambda d, r: linked(d, r, payload))
    refuses("a linked .metadata", ["not a regular file"], lambda d, r: linked(d, r, ".metadata"))
    refuses("a missing payload file", [payload], lambda d, r: os.remove(os.path.join(r, payload)))
    refuses("a cut payload file", [payload, "cut off|out of bounds"],
            lambda d, r: os.truncate(os.path.join(r, payload), os.path.getsize(os.path.join(r, payload)) // 2))
    refuses("no metadata.json", ["not a whole checkpoint"], lambda d, r: os.remove(os.path.join(r, "metadata.json")))
    refuses("no .metadata", [r"\.metadata"], lambda d, r: os.remove(os.path.join(r, ".metadata")))
    refuses("metadata.json of another kind", ["sharded_backend"],
            lambda d, r: put(r, "metadata.json", '{"sharded_backend": "zarr", "sharded_backend_version": 1}'))
    refuses("a tracker with a word", [TRACKER, "expected"], lambda d, r: put(d, TRACKER, "newest"))
    refuses("a tracker with a way out", [TRACKER, "expected"], lambda d, r: put(d, TRACKER, "../release"))
    refuses("a tracker of a step that is not there", [TRACKER, "iter_0000020|names 20"], lambda d, r: put(d, TRACKER, "20"))
    refuses("an empty tracker", [TRACKER, "expected"], lambda d, r: put(d, TRACKER, ""))

    def replace_bytes(release, old, new):
        path = os.path.join(release, ".metadata")
        with open(path, "rb") as file:
            data = file.read()
        assert old in data
        with open(path, "wb") as file:
            file.write(data.replace(old, new))

    name = payload.encode()
    way_out = b"../" + b"x" * (len(name) - 3)
    refuses("a payload name that leads outside", ["not allowed"], lambda d, r: replace_bytes(r, name, way_out))
    refuses(".metadata that calls a function", [r"\.metadata"],
            lambda d, r: put(r, ".metadata", "cos\nsystem\n(S'touch /tmp/fathom_was_here'\ntR."))
    refuses("an empty .metadata", [r"\.metadata"], lambda d, r: put(r, ".metadata", ""))

    def flip(release):
        path = os.path.join(release, payload)
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
    refuses("a flipped bit", ["CRC"], lambda d, r: flip(r))

    # A place that is taken.
    for content, words in (("20", ["training run"]), ("nonsense", ["expected"])):
        target = t.path("taken")
        shutil.rmtree(target, ignore_errors=True)
        os.makedirs(target)
        put(target, TRACKER, content)
        t.refused(f"prepare-spmd into a directory with the tracker {content}", 1, words, *convert(t, target))
        t.checks.that(not os.path.isdir(os.path.join(target, "release")), f"tracker {content}: something was published")


# ---- disks -------------------------------------------------------------------------------------

def writers(t, target):
    released = t.path("good")
    return {
        "prepare-single": (["prepare-single", "--input-fp8-hf-path", OFFICIAL, "--output-bf16-hf-path", target]),
        "prepare-spmd": convert(t, target),
        "prepare-spmd, 2 processes": [*convert(t, target), "--num-procs", "2", "--tensor-model-parallel-size", "2"],
        "export-hf": ["export-hf", "--load", released, "--source", OFFICIAL, "--output", target],
    }


def check_disks(t):
    target = t.path("limited")
    for name, args in writers(t, target).items():
        shutil.rmtree(target, ignore_errors=True)
        done = subprocess.run([t.fathom, *args], capture_output=True, text=True, env=environment(),
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
        t.check_message(f"{name}: files of 100 kB at most", 1, ["File too large"], done.returncode, done.stderr)
        t.checks.that(not published(target), f"{name}: files of 100 kB at most: something was published")
        run_ok(t.fathom, *args)  # and nothing that is left stands in the way
        t.checks.that(published(target), f"{name}: nothing was published without the limit")
    with memory_disk(t.path("readonly"), "size=4m") as mounted:
        if mounted is None:
            return
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        for name, args in writers(t, os.path.join(mounted, "out")).items():
            done = run(t.fathom, *args)
            t.check_message(f"{name}: a read-only disk", 1, ["[Rr]ead-only"], done.returncode, done.stderr)
        subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)


# ---- a file that becomes shorter ---------------------------------------------------------------

def opened_or_mapped(pid, shard):
    """Whether the process reads from the file by now."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == shard:
                    return "fd"
    return ""


def is_writing(target):
    """Whether headers are behind it: the first file of tensors is under way."""
    return any(name.endswith(".tmp") for _, _, names in os.walk(target) for name in names)


def check_shrinking(t):
    """The process is stopped once it reads the first shard's tensors; the last shard is cut; it goes on."""
    for command in ("prepare-spmd", "prepare-single"):
        caught = False
        for attempt in range(10):
            model, target = t.path(f"shrinking{attempt}"), t.path("shrunk")
            shutil.rmtree(model, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            synthetic_checkpoint.make("small", model, fill=True)
            shards = sorted(os.path.join(os.path.realpath(model), n) for n in os.listdir(model) if n.endswith(".safetensors"))
            args = {"prepare-spmd": [*convert(t, target, model), "--threads", "1"],
                    "prepare-single": ["prepare-single", "--input-fp8-hf-path", model, "--output-bf16-hf-path", target,
                                       "--threads", "1"]}[command]
            process = subprocess.Popen([t.fathom, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                       env=environment())
            while process.poll() is None and not (is_writing(target) and opened_or_mapped(process.pid, shards[0])):
                time.sleep(0.0002)
            if process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                late = not opened_or_mapped(process.pid, shards[0]) or opened_or_mapped(process.pid, shards[-1])
                os.truncate(shards[-1], 1 << 18)
                process.send_signal(signal.SIGCONT)
            else:
                late = True
            error = process.communicate()[1]
            shutil.rmtree(model)
            if late:
                continue
            caught = True
            t.check_message(f"{command}: a shard that becomes shorter", 1, ["shorter"], process.returncode, error)
            t.checks.that(not published(target), f"{command}: a shard that becomes shorter: something was published")
            break
        t.checks.that(caught, f"{command}: was never caught reading the first shard")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--show", action="store_true", help="print every message")
    args = parser.parse_args()
    checks = Checks()
    with work_directory("bad_checkpoints") as work:
        t = Tester(args.fathom, work, checks, args.show)
        check_index(t)
        check_torch_dist(t)
        check_disks(t)
        check_shrinking(t)
    sys.exit(checks.finish())


if __name__ == "__main__":
    main()
