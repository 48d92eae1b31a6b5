"""What the Python tests share: running the program, and counting checks that fail."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")
CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs")


class Checks:
    """Collects failures, so that one run tells all of them."""

    def __init__(self):
        self.done = 0
        self.failed = 0

    def that(self, condition, message):
        self.done += 1
        if not condition:
            self.failed += 1
            print(f"FAILED: {message}", flush=True)
        return bool(condition)

    def finish(self):
        """Exit status for sys.exit; a test that checked nothing has failed too."""
        print(f"{self.done} checks, {self.failed} failed")
        return 1 if self.failed or not self.done else 0


def environment(**extra):
    """The process environment without options of ours that a developer's shell may hold."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MILES_SCRIPT_")}
    return {**kept, **extra}


def run(fathom, *args, text="", timeout=300, env=None, cwd=None):
    """One call of the program: CompletedProcess with stdout and stderr as text."""
    return subprocess.run([fathom, *map(str, args)], input=text, capture_output=True, encoding="utf-8",
                          errors="replace", check=False, timeout=timeout, env=env or environment(), cwd=cwd)


def run_ok(fathom, *args, **kwargs):
    """As run, but an exit status other than 0 ends the test with what the program said."""
    done = run(fathom, *args, **kwargs)
    if done.returncode != 0:
        sys.exit(f"`fathom {' '.join(map(str, args))}` ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done


def write_lines(path, lines):
    """A jsonl file; a line that is a string already is written as it is."""
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    return path


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tiny_run(work, run_id, num_rollout=6, **options):
    """Arguments of full-train: the tiny recipe, shortened, with everything it writes under `work`."""
    data = os.path.join(work, "data")
    settings = {
        "config": os.path.join(CONFIGS, "tiny_cpu.json"), "run-id": run_id, "data-dir": data,
        "model-dir": os.path.join(work, "models"), "save-dir": os.path.join(work, "runs"),
        "prompt-data": os.path.join(data, "digit_sum", "train.jsonl"), "num-rollout": num_rollout,
        "eval-prompt-data": ["digit_sum", os.path.join(data, "digit_sum", "heldout.jsonl@[0:32]")],
        "eval-interval": 3, "save-interval": 2, "save-retain-interval": 1000,
    }
    settings.update({name.replace("_", "-"): value for name, value in options.items()})
    arguments = ["full-train"]
    for name, value in settings.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


@contextlib.contextmanager
def work_directory(name):
    with tempfile.TemporaryDirectory(prefix=f"fathom_{name}_") as path:
        yield path
