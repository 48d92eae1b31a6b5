"""The Python Hub client takes what fathom downloaded for its own, and the other way round.

usage: hub.py PATH_TO_FATHOM
"""

import json
import os
import random
import subprocess
import sys

from hub_server import Repo, serve_hub
from program import Checks, environment, run_ok, work_directory

FILES = {"config.json": b"{}", "empty": b"", "sub/dir/\u00e9 x.txt": b"hello\n",
         "model-1.safetensors": random.Random(1).randbytes(200_000), "sub/model-2.safetensors": bytes(5000)}

CLIENT = """
import json, sys
from huggingface_hub import hf_hub_download, snapshot_download, scan_cache_dir
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
name, options, files = json.loads(sys.argv[1])
path = snapshot_download(name, **options)
for file in files:
    hf_hub_download(name, file, **options)
if "local_dir" not in options:
    assert not scan_cache_dir(options["cache_dir"]).warnings, scan_cache_dir(options["cache_dir"]).warnings
print(path)
"""


def python_client(env, name, files, **options):
    done = subprocess.run([sys.executable, "-c", CLIENT, json.dumps([name, options, files])], env=env,
                          capture_output=True, encoding="utf-8", check=False, timeout=120)
    if done.returncode != 0:
        sys.exit(f"huggingface_hub ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def transfers(hub):
    """Requests that carry files' bytes."""
    return hub.count("cdn", "GET") + hub.count("hub", "GET", "/resolve/")


def same(checks, what, directory):
    for path, data in FILES.items():
        full = os.path.join(directory, path)
        checks.that(os.path.exists(full) and open(full, "rb").read() == data, f"{what}: {path}")


def check_kind(checks, fathom, hub, work, name, kind):
    env = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=os.path.join(work, "home"), HOME=work,
                      NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    env.pop("HF_TOKEN", None)
    offline = {**env, "HF_HUB_OFFLINE": "1"}
    files = list(FILES)

    def ours(*args, env=env):
        return run_ok(fathom, "download", name, "--repo-type", kind, *args, env=env).stdout.strip()

    def theirs(env=env, **options):
        return python_client(env, name, files, repo_type=kind, **options)

    def nothing_moves(what, fetch):
        before = transfers(hub)
        same(checks, what, fetch())
        checks.that(transfers(hub) == before, f"{what}: files were fetched again")

    cache, place = os.path.join(work, "cache_ours"), os.path.join(work, "local_ours")
    path = ours("--cache-dir", cache)
    same(checks, f"{kind}: our cache", path)
    nothing_moves(f"{kind}: their client on our cache", lambda: theirs(cache_dir=cache))
    nothing_moves(f"{kind}: their client, offline, on our cache", lambda: theirs(env=offline, cache_dir=cache))
    checks.that(theirs(cache_dir=cache) == path, f"{kind}: another path of the snapshot")
    ours("--local-dir", place)
    nothing_moves(f"{kind}: their client on our directory", lambda: theirs(local_dir=place))

    cache, place = os.path.join(work, "cache_theirs"), os.path.join(work, "local_theirs")
    path = theirs(cache_dir=cache)
    nothing_moves(f"{kind}: ours on their cache", lambda: ours("--cache-dir", cache))
    nothing_moves(f"{kind}: ours, offline, on their cache", lambda: ours("--cache-dir", cache, env=offline))
    checks.that(ours("--cache-dir", cache) == path, f"{kind}: another path of the snapshot")
    theirs(local_dir=place)
    nothing_moves(f"{kind}: ours on their directory", lambda: ours("--local-dir", place))
    nothing_moves(f"{kind}: ours, offline, on their directory", lambda: ours("--local-dir", place, env=offline))

    # A new commit changes one file: both fetch that one, whoever fetched the others.
    repo = hub.repos[name]
    repo.commit({**FILES, "config.json": b'{"new": 1}'})
    ours("--cache-dir", os.path.join(work, "cache_theirs"))
    checks.that(theirs(cache_dir=os.path.join(work, "cache_theirs")).endswith(repo.refs["main"]),
                f"{kind}: the new commit")
    theirs(local_dir=os.path.join(work, "local_ours"))
    before = hub.count("cdn", "GET")
    ours("--local-dir", os.path.join(work, "local_ours"))
    ours("--local-dir", os.path.join(work, "local_theirs"))
    checks.that(hub.count("cdn", "GET") == before, f"{kind}: unchanged large files were fetched again")


def main():
    checks = Checks()
    fathom = os.path.abspath(sys.argv[1])
    for kind in ("model", "dataset"):
        name = "org/" + kind
        with work_directory("hub") as work, serve_hub({name: Repo(FILES, kind=kind + "s")}) as hub:
            check_kind(checks, fathom, hub, work, name, kind)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
