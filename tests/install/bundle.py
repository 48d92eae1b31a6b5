"""What `make bundle` packs runs elsewhere.

usage: bundle.py CMAKE BUILD_DIRECTORY

Installs the build, packs it, unpacks it under another name and runs it with an empty environment from a foreign
directory: every library but those that each Linux has comes from the bundle, the recipes are the bundle's, and a model
is cast, scored and answered with. Needs Python's standard library alone.
"""

import json
import os
import re
import subprocess
import sys
import tarfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from program import GOLDEN, Checks, work_directory, write_lines  # noqa: E402

MODEL = os.path.abspath(os.path.join(GOLDEN, "small_official", "model"))
# The C library's parts, the C++ library's, and the kernel's own.
OF_EVERY_LINUX = re.compile(r"(linux-vdso|ld-linux-x86-64|lib(c|m|dl|rt|pthread|resolv|stdc\+\+|gcc_s))[.-]")
LIMIT = 64 << 20


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    cmake, build = sys.argv[1:]
    checks = Checks()
    with work_directory("bundle") as work:
        subprocess.run([cmake, "--install", build, "--prefix", os.path.join(work, "first", "fathom"), "--strip"],
                       check=True, stdout=subprocess.DEVNULL)
        archive = os.path.join(work, "fathom.tar.gz")
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            tar.add(os.path.join(work, "first", "fathom"), arcname="fathom")
        checks.that(os.path.getsize(archive) < LIMIT, f"the bundle has {os.path.getsize(archive)} bytes")
        os.rename(os.path.join(work, "first"), os.path.join(work, "gone"))
        subprocess.run(["chmod", "-R", "a-x", os.path.join(work, "gone", "fathom", "bin")], check=True)
        moved = os.path.join(work, "moved here")
        with tarfile.open(archive) as tar:
            tar.extractall(moved)
        program = os.path.join(moved, "fathom", "bin", "fathom")
        lib = os.path.join(moved, "fathom", "lib")

        listed = subprocess.run(["ldd", program], check=True, capture_output=True, encoding="utf-8").stdout
        libraries = [line.strip() for line in listed.splitlines()]
        checks.that(len(libraries) > 5, f"ldd lists {libraries}")
        for line in libraries:
            name, _, path = line.partition(" => ")
            if OF_EVERY_LINUX.search(name):
                continue
            checks.that(os.path.normpath(path).startswith(lib + os.sep), f"{name} is not the bundle's: {path or 'not found'}")

        foreign = os.path.join(work, "foreign")
        os.mkdir(foreign)

        def run(*args):
            return subprocess.run([program, *args], cwd=foreign, env={}, capture_output=True, encoding="utf-8",
                                  check=False, timeout=100)

        done = run("--version")
        checks.that(done.returncode == 0 and "fathom" in done.stdout, f"--version: {done}")
        write_lines(os.path.join(foreign, "in.jsonl"), [{"token_ids": [1, 2, 3, 4, 5]}])
        done = run("score", "--hf-checkpoint", MODEL, "--input", "in.jsonl", "--output", "out.safetensors")
        checks.that(done.returncode == 0 and os.path.getsize(os.path.join(foreign, "out.safetensors")) > 0,
                    f"score: {done.stderr}")
        # A recipe by name, from the bundle: nothing of the sources is needed.
        done = run("prepare-single", "--config", os.path.join(moved, "fathom", "share", "fathom", "configs", "tiny_cpu.json"),
                   "--model-dir", "models", "--hf-checkpoint", MODEL)
        checks.that(done.returncode == 0, f"prepare-single: {done.stderr}")
        write_lines(os.path.join(foreign, "prompts.jsonl"), [{"token_ids": [1, 2, 3]}])
        done = run("generate", "--hf-checkpoint", MODEL, "--input", "prompts.jsonl", "--output", "answers.jsonl",
                   "--max-new-tokens", "4", "--temperature", "0", "--ignore-eos")
        if checks.that(done.returncode == 0, f"generate: {done.stderr}"):
            with open(os.path.join(foreign, "answers.jsonl"), encoding="utf-8") as file:
                answer = json.loads(file.readline())
            checks.that(len(answer["token_ids"]) == 4, f"generate: {answer}")
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
