"""The Hub client against a Hub on this machine that misbehaves in every way that the real one does.

usage: hub_download.py PATH_TO_FATHOM

Needs Python's standard library alone.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from hub_server import Repo, git_sha1, serve_hub  # noqa: E402
from program import Checks, environment, run, work_directory  # noqa: E402

NAME = "org/model"
SECRET = "hf_secretsecret"


def content(size, seed):
    return random.Random(seed).randbytes(size)


def small_repo(**options):
    return Repo({"config.json": b'{"model_type": "deepseek_ref"}', "empty": b"", "sub/dir/\u00e9 x.txt": b"hello\n",
                 "model-1.safetensors": content(300_000, 1), "model-2.safetensors": content(70_000, 2),
                 "copy.safetensors": content(70_000, 2)}, **options)


class Case:
    """A Hub, a directory and the program with the environment that leads it there."""

    def __init__(self, checks, fathom, hub, work):
        self.checks, self.fathom, self.hub = checks, fathom, hub
        self.work = work
        self.env = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=os.path.join(work, "hf"), HOME=work,
                               HF_HUB_DOWNLOAD_TIMEOUT="2", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "REQUESTS_CA_BUNDLE",
                     "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            self.env.pop(name, None)

    def download(self, *args, name=NAME, **env):
        done = run(self.fathom, "download", name, *args, env={**self.env, **env}, timeout=120)
        return done

    def good(self, what, *args, **env):
        done = self.download(*args, **env)
        self.checks.that(done.returncode == 0, f"{what}: ended with {done.returncode}: {done.stderr[-600:]}")
        return done.stdout.strip()

    def bad(self, what, words, *args, **env):
        done = self.download(*args, **env)
        self.checks.that(done.returncode == 1, f"{what}: ended with {done.returncode}, not 1: {done.stderr[-600:]}")
        self.checks.that(done.stderr.count("error:") == 1 and all(w in done.stderr for w in words),
                         f"{what}: no {words} in: {done.stderr[-600:]}")
        return done

    def same(self, what, directory, files):
        for path, data in files.items():
            full = os.path.join(directory, path)
            got = open(full, "rb").read() if os.path.exists(full) else None
            self.checks.that(got == data, f"{what}: {path} differs")

    def local(self, name):
        return os.path.join(self.work, name)


def files_of(hub, name=NAME):
    repo = hub.repos[name]
    return repo.commits[repo.refs["main"]]


# ---- cases ---------------------------------------------------------------------------------------

def plain(c):
    files = files_of(c.hub)
    cache = c.good("cache")
    c.same("cache", cache, files)
    repo = c.hub.repos[NAME]
    c.checks.that(cache.endswith(f"hf/hub/models--org--model/snapshots/{repo.refs['main']}"), f"path {cache}")
    link = os.readlink(os.path.join(cache, "sub/dir/\u00e9 x.txt"))
    c.checks.that(link == "../../../../blobs/" + git_sha1(b"hello\n"), f"link {link}")
    c.same("local", c.good("local", "--local-dir", c.local("plain")), files)
    before = c.hub.count(containing="/resolve/")
    c.good("cache again")
    c.good("local again", "--local-dir", c.local("plain"))
    c.checks.that(c.hub.count(containing="/resolve/") == before, "a second download asked for files")
    leftovers = [f for folder, _, names in os.walk(c.work) for f in names if "incomplete" in f]
    c.checks.that(not leftovers, f"left behind: {leftovers}")


def patterns_and_plans(c):
    directory = c.local("patterns")
    c.good("include", "--include", "*.json", "--include", "sub/", "--exclude", "*x.txt", "--local-dir", directory)
    c.checks.that(sorted(os.listdir(directory)) == [".cache", "config.json"], f"{os.listdir(directory)}")
    c.good("names", "empty", "--local-dir", directory)
    c.checks.that(os.path.exists(os.path.join(directory, "empty")), "a named file is missing")
    c.bad("no such file", ["has no file nothing"], "nothing", "--local-dir", directory)
    other = c.local("dry")
    plan = c.good("dry run", "--dry-run", "--local-dir", other)
    c.checks.that(len(plan.splitlines()) == len(files_of(c.hub)) and not os.path.exists(other), f"dry run: {plan}")


def redirects_and_token(c):
    c.hub.token = SECRET
    c.hub.repos[NAME].private = True
    c.hub.faults.relative_redirect = True
    c.bad("no token", ["401", "GatedRepo", "HF_TOKEN"], "--local-dir", c.local("gated"))
    c.hub.requests.clear()
    c.same("token", c.good("token", "--local-dir", c.local("token"), HF_TOKEN=SECRET), files_of(c.hub))
    seen = {s: [h.get("Authorization") for k, _, _, h in c.hub.requests if k == s] for s in ("hub", "cdn")}
    c.checks.that(len(seen["cdn"]) >= 2 and not any(seen["cdn"]), "the CDN was told the token")
    c.checks.that(all(a == f"Bearer {SECRET}" for a in seen["hub"]), "the Hub was not told the token")
    token_file = os.path.join(c.work, "hf", "token")
    os.makedirs(os.path.dirname(token_file), exist_ok=True)
    with open(token_file, "w", encoding="utf-8") as file:
        file.write(SECRET + "\n")
    c.good("token file", "--local-dir", c.local("token_file"))
    os.remove(token_file)
    done = c.bad("wrong token", ["401"], "--local-dir", c.local("wrong"), HF_TOKEN="hf_other")
    c.checks.that("hf_other" not in done.stderr, "the token was printed")


def broken_streams(c):
    f = c.hub.faults
    f.close_after, f.close_times = 40_000, 3
    c.same("closed", c.good("closed", "--local-dir", c.local("closed")), files_of(c.hub))
    c.checks.that(any(h.get("Range", "").startswith("bytes=40000-") for _, _, _, h in c.hub.requests),
                  "a broken stream was not gone on with")


def ranges_refused(c):
    f = c.hub.faults
    for fault in ("ignore_ranges", "refuse_ranges"):
        setattr(f, fault, True)
        f.close_after, f.close_times = 100_000, 1
        where = c.local(fault)
        c.same(fault, c.good(fault, "--local-dir", where, "--include", "model-1*"),
               {"model-1.safetensors": files_of(c.hub)["model-1.safetensors"]})
        c.checks.that(f.close_times == 0, f"{fault}: the stream was not cut")
        setattr(f, fault, False)
    f.ignore_ranges, f.close_times = True, 10**6
    c.bad("always cut, no ranges", ["times", "is kept"], "--local-dir", c.local("cut"),
          "--include", "model-1*")
    f.ignore_ranges, f.close_times = False, 0
    f.extra_bytes, f.close_times = 7, 1
    c.bad("more bytes than asked for", ["promised"], "--local-dir", c.local("extra"), "--include", "model-1*")


def parallel_ranges(c):
    name, data = "org/big", content(1 << 20, 6) * 150
    c.hub.repos[name] = Repo({"big.bin": data})
    where = c.local("big")
    c.hub.faults.close_after, c.hub.faults.close_times = 5_000_000, 2
    c.same("ranges", c.good("ranges", "--local-dir", where, name=name), {"big.bin": data})
    asked = {h.get("Range") for s, m, _, h in c.hub.requests if s == "cdn" and m == "GET"}
    c.checks.that(f"bytes={2 << 26}-{len(data) - 1}" in asked and len(asked) == 5, f"ranges {asked}")
    c.hub.faults.ignore_ranges = True
    c.same("ranges ignored", c.good("ranges ignored", "--local-dir", c.local("big2"), name=name), {"big.bin": data})
    c.hub.faults.ignore_ranges, c.hub.faults.refuse_ranges = False, True
    c.same("ranges refused", c.good("ranges refused", "--local-dir", c.local("big3"), name=name), {"big.bin": data})


def busy_servers(c):
    f = c.hub.faults
    f.rate_limits, f.server_errors = 2, 1
    c.same("busy", c.good("busy", "--local-dir", c.local("busy")), files_of(c.hub))
    c.checks.that(f.rate_limits == 0 and f.server_errors == 0, "the faults were not met")


def expired_signatures(c):
    c.hub.faults.expire_after = 1
    c.hub.faults.close_after, c.hub.faults.close_times = 50_000, 3
    heads = c.hub.count("hub", "HEAD", "model-1")
    c.same("expired", c.good("expired", "--local-dir", c.local("expired")), files_of(c.hub))
    c.checks.that(c.hub.count("hub", "HEAD", "model-1") > heads + 1, "no new signature was asked for")
    c.hub.faults.expire_after = 0
    c.bad("dead signature", ["refuses its signed address"], "--local-dir", c.local("dead"), "--include", "model-1*")


def wrong_content(c):
    f = c.hub.faults
    for path, kind in (("model-1.safetensors", "SHA-256"), ("config.json", "git hash")):
        f.corrupt = {path}
        where = c.local("corrupt_" + path)
        c.bad(f"wrong {kind}", [kind, "promised was", path], "--local-dir", where, "--include", path)
        c.checks.that(not os.path.exists(os.path.join(where, path)), f"wrong {kind}: the file was kept")
        cached = c.bad(f"wrong {kind} in the cache", [kind], "--include", path)
        c.checks.that(cached.stdout == "", "a path was printed")
    f.corrupt, f.corrupt_times = {"model-1.safetensors"}, 1
    c.same("wrong once", c.good("wrong once", "--local-dir", c.local("once")), files_of(c.hub))


def hostile_listings(c):
    for path in ("../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\..\\evil", "x\ny"):
        c.hub.faults.extra_paths = [path]
        for place in (["--local-dir", c.local("in/hostile")], []):
            c.bad(f"path {path!r}", ["nothing of it was written"], *place)
    c.checks.that(not os.path.exists(c.local("in/evil")) and not os.path.exists(c.local("evil")), "a file got out")
    c.checks.that(not os.path.exists(os.path.join(c.local("in/hostile"), "config.json")), "something was written")
    c.hub.faults.extra_paths = [".cache/huggingface/download/x"]
    c.bad("notes", ["would replace the notes"], "--local-dir", c.local("notes"))
    c.hub.faults.extra_paths = []
    for body, words in ((b"[" * 100_000, ["listing", "JSON"]), (b"{}", ["list"]), (b'[{"type": "file"}]', ["no path"]),
                        (b'[{"type": "file", "path": "a", "oid": "x", "size": 1}]', ["no git hash"])):
        c.hub.faults.listing = body
        c.bad("listing", [words[-1]], "--local-dir", c.local("listing"))
    c.hub.faults.listing = None


def paging(c):
    c.hub.faults.page_size = 2
    c.same("pages", c.good("pages", "--local-dir", c.local("pages")), files_of(c.hub))
    c.checks.that(c.hub.count("hub", "GET", "cursor=") >= 2, "one page was asked for")


def revisions_and_offline(c):
    repo = c.hub.repos[NAME]
    old, old_files = repo.refs["main"], files_of(c.hub)
    new_files = {**old_files, "config.json": b"{}\n"}
    c.good("before", "--local-dir", c.local("update"))
    c.good("cache before")
    new = repo.commit(new_files)
    repo.refs["refs/pr/1"] = old
    large = c.hub.count("cdn")
    c.same("update", c.good("update", "--local-dir", c.local("update")), new_files)
    c.checks.that(c.good("cache after").endswith(new), "the cache's path has the old commit")
    c.checks.that(c.hub.count("cdn") == large, "large files that had not changed were fetched again")
    c.checks.that(c.good("pinned", "--revision", old).endswith(old), "a pinned commit was not taken")
    c.checks.that(c.good("branch", "--revision", "refs/pr/1").endswith(old), "a branch was not taken")
    c.bad("no such revision", ["RevisionNotFound", "--revision"], "--revision", "nowhere")
    c.bad("no such repository", ["RepoNotFound"], name="org/none")
    count = len(c.hub.requests)
    c.checks.that(c.good("offline", HF_HUB_OFFLINE="1").endswith(new), "offline has another commit")
    c.same("offline", c.good("offline local", "--local-dir", c.local("update"), HF_HUB_OFFLINE="1"), new_files)
    c.checks.that(len(c.hub.requests) == count, "offline asked the Hub")
    os.remove(os.path.join(c.good("path"), "config.json"))
    c.bad("offline incomplete", ["incomplete snapshot", "config.json"], HF_HUB_OFFLINE="1")
    c.bad("offline nothing", ["not downloaded yet"], name="org/none", HF_HUB_OFFLINE="1")
    c.good("offline, not wanted", "--exclude", "config.json", HF_HUB_OFFLINE="1")
    # A Hub that is away: what is complete is used with a warning.
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1"}
    done = c.download("--local-dir", c.local("update"), **dead)
    c.checks.that(done.returncode == 0 and "warning" in done.stderr and "; using" in done.stderr, f"dead Hub: {done.stderr[-500:]}")


def local_rules(c):
    where, files = c.local("rules"), files_of(c.hub)
    c.good("first", "--local-dir", where)
    notes = os.path.join(where, ".cache/huggingface/download")
    lines = open(os.path.join(notes, "config.json.metadata"), encoding="utf-8").read().splitlines()
    repo = c.hub.repos[NAME]
    c.checks.that(lines[:2] == [repo.refs["main"], git_sha1(files["config.json"])] and float(lines[2]) > 1e9,
                  f"metadata {lines}")
    # A changed file of the same size, newer than its note, is fetched again.
    path = os.path.join(where, "model-1.safetensors")
    with open(path, "r+b") as file:
        file.write(b"spoiled")
    os.utime(path, (time.time() + 10, time.time() + 10))
    c.same("spoiled", c.good("spoiled", "--local-dir", where), files)
    # Without notes a large file is hashed and kept.
    os.remove(os.path.join(notes, "model-1.safetensors.metadata"))
    gets = c.hub.count("cdn", "GET")
    c.good("without notes", "--local-dir", where)
    c.checks.that(c.hub.count("cdn", "GET") == gets, "a right file without a note was fetched again")
    # What the cache has is copied.
    c.good("cache")
    gets = c.hub.count("cdn", "GET")
    c.same("copied", c.good("copied", "--local-dir", c.local("copied")), files)
    c.checks.that(c.hub.count("cdn", "GET") == gets, "what the cache has was fetched again")
    c.good("forced", "--local-dir", c.local("copied"), "--force-download")
    os.makedirs(c.local("links"))
    os.symlink(c.local("copied"), os.path.join(c.local("links"), "sub"))
    c.bad("a link in the way", ["symbolic link"], "--local-dir", c.local("links"), "--force-download",
          "--include", "sub/*")


def killed(c):
    """Killed at random instants, the download goes on and does not fetch everything anew."""
    name, data = "org/big", content(24_000_000, 5)
    c.hub.repos[name] = Repo({"big.bin": data, "a.txt": b"a"})
    c.hub.faults.slow_piece = (1_000_000, 0.05)
    where = c.local("killed")
    instants = random.Random(3)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen([c.fathom, "download", name, "--local-dir", where], env=c.env,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(instants.uniform(0.05, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            c.checks.that(not os.path.exists(os.path.join(where, "big.bin")) or
                          open(os.path.join(where, "big.bin"), "rb").read() == data, "an incomplete file has its name")
    c.hub.faults.slow_piece = None
    c.same("killed", c.good("after the kills", "--local-dir", where, name=name), {"big.bin": data})
    c.checks.that(kills > 3, f"killed {kills} times")
    # Two at a time do not disturb each other.
    both = [subprocess.Popen([c.fathom, "download", name, "--local-dir", c.local("both")], env=c.env,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    c.checks.that([p.wait(60) for p in both] == [0, 0], "two downloads at a time")
    c.same("both", c.local("both"), {"big.bin": data})


def pipeline(c):
    """prepare-download: the model and the data of a task."""
    model = {"config.json": b'{\n  "model_type": "deepseek_ref"\n}', "model.safetensors": content(5000, 9),
             "tokenizer.json": b"{}"}
    c.hub.repos["Pinaster/DeepSeek-V4-Flash-FP8-4layer"] = Repo(model)
    c.hub.repos["zhuzilin/dapo-math-17k"] = Repo({"dapo-math-17k.jsonl": b'{"prompt": "1"}\n'}, kind="datasets")
    c.hub.repos["zhuzilin/aime-2024"] = Repo({"aime-2024.jsonl": b'{"prompt": "2"}\n'}, kind="datasets")
    places = ["--model-dir", c.local("models"), "--data-dir", c.local("data"), "--model-name",
              "DeepSeek-V4-Flash-FP8-4layer"]

    def prepare(*args, command="prepare-download"):
        return run(c.fathom, command, *places, *args, env=c.env)

    done = prepare()
    c.checks.that(done.returncode == 0, f"prepare-download: {done.stderr[-800:]}")
    where = c.local("models/DeepSeek-V4-Flash-FP8-4layer")
    c.same("model", where, {**model, "config.json": b'{\n  "model_type": "deepseek_v4"\n}'})
    c.same("data", c.local("data"), {"dapo-math-17k/dapo-math-17k.jsonl": b'{"prompt": "1"}\n'})
    # The rewritten config.json is no reason to convert again.
    tracker = c.local("models/DeepSeek-V4-Flash-FP8-4layer_torch_dist/latest_checkpointed_iteration.txt")
    os.makedirs(os.path.dirname(tracker))
    open(tracker, "w").close()
    c.checks.that(prepare().returncode == 0 and os.path.exists(tracker), "an unchanged model lost its conversion")
    count = len(c.hub.requests)
    done = prepare(command="full-train")
    c.checks.that("is complete" in done.stderr and len(c.hub.requests) == count, "full-train asked the Hub again")
    c.hub.repos["Pinaster/DeepSeek-V4-Flash-FP8-4layer"].commit({**model, "model.safetensors": content(5000, 10)})
    c.checks.that(prepare().returncode == 0 and not os.path.exists(tracker), "a changed model kept its conversion")
    # gsm8k lies under one of two names.
    c.hub.repos["openai/gsm8k"] = Repo({"main/train-00000-of-00001.parquet": b"PAR1train",
                                        "main/test-00000-of-00001.parquet": b"PAR1test", "socratic/x": b"no"},
                                       kind="datasets")
    done = prepare("--task", "gsm8k")
    c.checks.that(done.returncode == 0, f"gsm8k: {done.stderr[-800:]}")
    c.same("gsm8k", c.local("data/gsm8k"), {"train.parquet": b"PAR1train", "test.parquet": b"PAR1test"})
    c.checks.that(not os.path.exists(c.local("data/gsm8k/socratic")), "more than what is needed was fetched")
    done = prepare("--model-org", "nobody")
    c.checks.that(done.returncode == 0 or "the Hub has no" in done.stderr, f"other organisation: {done.stderr[-300:]}")


def make_certificate(work, name):
    """A certificate that vouches for itself: (its file, the file of its key)."""
    certificate, key = (os.path.join(work, f"{name}.{kind}") for kind in ("pem", "key"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                    "2", "-subj", "/CN=" + name, "-addext", f"subjectAltName=IP:{name}", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    return certificate, key


def https(c):
    """Certificates are checked; those of CURL_CA_BUNDLE and its kin count."""
    if shutil.which("openssl") is None:
        print("https: SKIPPED, there is no openssl to make a certificate with")
        return
    right, other = make_certificate(c.work, "127.0.0.1"), make_certificate(c.work, "127.0.0.9")
    files = {**small_repo().commits[small_repo().refs["main"]], "big.safetensors": content(1 << 20, 7)}
    with serve_hub({NAME: Repo(files, private=True)}, token=SECRET, certificate=right) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": SECRET}
        for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            where = c.local(name)
            c.same(name, c.good(name, "--local-dir", where, **env, **{name: right[0]}), files)
        seen = {s: {h.get("Authorization") for k, _, _, h in hub.requests if k == s} for s in ("hub", "cdn")}
        c.checks.that(seen == {"hub": {f"Bearer {SECRET}"}, "cdn": {None}}, f"https: who was told the token: {seen}")
        hub.faults.close_after, hub.faults.close_times = 400_000, 2
        c.same("https, cut", c.good("https, cut", "--local-dir", c.local("tls_cut"), **env, CURL_CA_BUNDLE=right[0]), files)
        c.checks.that(hub.faults.close_times == 0, "https: the stream was not cut")
        count = len(hub.requests)
        c.bad("nobody's certificate", ["certificate"], "--local-dir", c.local("tls_no"), **env)
        c.bad("another certificate", ["certificate"], "--local-dir", c.local("tls_no"), **env, CURL_CA_BUNDLE=other[0])
        c.bad("no certificates", [c.local("none.pem")], "--local-dir", c.local("tls_no"), **env, CURL_CA_BUNDLE=c.local("none.pem"))
        c.checks.that(len(hub.requests) == count, "https: a server without a good certificate was asked")
    with serve_hub({NAME: small_repo()}, certificate=other) as hub:
        c.bad("a certificate for another host", ["certificate"], "--local-dir", c.local("tls_no"), HF_ENDPOINT=hub.endpoint,
              CURL_CA_BUNDLE=other[0])
        c.checks.that(not hub.requests and not os.path.exists(c.local("tls_no/config.json")), "https: a file of another host")


def mistakes(c):
    for args, words in (([], ["--repo is missing"]), (["a/b", "--cache-dir", "x", "--local-dir", "y"], ["two places"]),
                        (["a/b/c"], ["more than one '/'"]), (["../x"], ["no name of a repository"])):
        done = run(c.fathom, "download", *args, env=c.env)
        c.checks.that(done.returncode == 2 and all(w in done.stderr for w in words), f"{args}: {done.stderr[-300:]}")
    done = c.download(HF_ENDPOINT="ftp://x")
    c.checks.that(done.returncode == 2 and "HF_ENDPOINT" in done.stderr, f"end point: {done.stderr[-300:]}")
    big = Repo({"x": b"y"})
    c.hub.repos["org/huge"] = big
    c.hub.faults.listing = json.dumps([{"type": "file", "path": "x", "size": 2**49, "oid": git_sha1(b"y"), "lfs": {
        "oid": hashlib.sha256(b"y").hexdigest(), "size": 2**49, "pointerSize": 1}}]).encode()
    c.bad("no space", ["needs", "left", "fix:"], "--local-dir", c.local("huge"), name="org/huge")


CASES = [plain, patterns_and_plans, redirects_and_token, broken_streams, ranges_refused, parallel_ranges,
         busy_servers,
         expired_signatures, wrong_content, hostile_listings, paging, revisions_and_offline, local_rules, killed,
         pipeline, https, mistakes]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("fathom")
    parser.add_argument("--only")
    args = parser.parse_args()
    checks = Checks()
    for case in CASES:
        if args.only and case.__name__ != args.only:
            continue
        begin = time.time()
        with work_directory("hub") as work, serve_hub({NAME: small_repo()}) as hub:
            case(Case(checks, os.path.abspath(args.fathom), hub, work))
        print(f"{case.__name__}: {time.time() - begin:.1f} s", flush=True)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
