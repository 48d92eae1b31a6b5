"""Load on `fathom serve` over loopback: concurrent streaming clients of mixed lengths that sometimes hang up, every token
compared with the same request's answer when the server had nothing else to do; and throughput beside `fathom generate`.
Needs nothing but Python.

    python3 bench/serve_load.py build/fathom --clients 256 --seconds 600       # load
    python3 bench/serve_load.py build/fathom --throughput                      # 64 at a time, against `fathom generate`

Prints one JSON line of figures; ends with 1 when a token was lost, doubled or wrong, when memory of states was not given
back, or when the server did not end well. RSS is that of the server process."""

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
TINY = os.path.join(ROOT, "configs", "tiny", "base")


class Server:
    def __init__(self, fathom, checkpoint, options):
        command = [fathom, "serve", "--hf-checkpoint", checkpoint, "--port", "0", "--incremental-streaming-output",
                   *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.port = None
        for line in self.process.stderr:
            if found := re.match(r"serve: http://127.0.0.1:(\d+)", line):
                self.port = int(found.group(1))
                break
        if self.port is None:
            sys.exit("the server did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        with urllib.request.urlopen(request, timeout=600) as response:
            text = response.read()
        return json.loads(text) if text.startswith((b"{", b"[")) else text.decode()

    def state(self):
        return self.ask("/get_server_info")["internal_states"][0]

    def rss_mb(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+) kB", file.read()).group(1)) / 1024

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def make_items(count, vocab, rng, longest_prompt, longest_answer):
    """Requests of mixed lengths; some begin alike, as conversations do."""
    beginnings = [[rng.randrange(2, vocab) for _ in range(longest_prompt // 2)] for _ in range(4)]
    items = []
    for i in range(count):
        prompt = [0] + [rng.randrange(2, vocab) for _ in range(rng.randrange(1, longest_prompt // 2))]
        if i % 3 == 0:
            prompt = rng.choice(beginnings) + prompt
        items.append({"input_ids": prompt,
                      "sampling_params": {"max_new_tokens": rng.randrange(1, longest_answer + 1), "sampling_seed": i,
                                          "ignore_eos": i % 2 == 0, "temperature": 1.0, "top_p": rng.choice([1.0, 0.9])}})
    return items


def percentiles(values):
    values = sorted(values)
    if not values:
        return {}
    at = lambda share: round(values[min(len(values) - 1, int(share * len(values)))] * 1e3, 2)
    return {"p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": round(values[-1] * 1e3, 2)}


class Load:
    def __init__(self, port, items, expected, disconnects, stream):
        self.port, self.items, self.expected = port, items, expected
        self.disconnects, self.stream = disconnects, stream
        self.first, self.between, self.wrong = [], [], []
        self.num_done = self.num_left = self.num_tokens = self.num_retries = 0

    def head(self, body):
        return (b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body)) + body

    async def client(self, number, end):
        rng = random.Random(number)
        connection = None
        while time.monotonic() < end:
            if connection is None:
                try:
                    connection = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    self.num_retries += 1
                    await asyncio.sleep(0.05)
                    continue
            i = rng.randrange(len(self.items))
            leaves_after = None
            if rng.random() < self.disconnects:
                leaves_after = rng.randrange(0, len(self.expected[i]) + 1)
            kept = await self.request(connection, i, leaves_after)
            if not kept:
                connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    async def request(self, connection, i, leaves_after):
        """@return whether the connection can be used again."""
        reader, writer = connection
        writer.write(self.head(json.dumps({**self.items[i], "stream": self.stream}).encode()))
        begin = last = time.monotonic()
        if leaves_after == 0:
            await asyncio.sleep(random.random() * 0.01)
            self.num_left += 1
            return False
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.wrong.append(f"request {i}: the connection broke: {error!r}")
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            self.wrong.append(f"request {i}: {head[:60]!r}")
            return False
        if not self.stream:
            length = int(re.search(rb"Content-Length: (\d+)", head).group(1))
            tokens = json.loads(await reader.readexactly(length))["output_ids"]
            self.first.append(time.monotonic() - begin)
            self.finish(i, tokens)
            return True
        tokens, is_done = [], False
        while True:
            size = int(await reader.readline(), 16)
            chunk = (await reader.readexactly(size + 2))[:size]
            if size == 0:
                break
            now = time.monotonic()
            for event in chunk.split(b"\n\n"):
                if event == b"" or event == b"data: [DONE]":
                    is_done = is_done or event != b""
                    continue
                news = json.loads(event[6:])
                if "error" in news:
                    self.wrong.append(f"request {i}: {news['error']}")
                    return False
                if news["output_ids"]:
                    (self.between if tokens else self.first).append(now - last)
                    last = now
                tokens += news["output_ids"]
                if news["meta_info"]["completion_tokens"] != len(tokens):
                    self.wrong.append(f"request {i}: {news['meta_info']['completion_tokens']} tokens are said to be "
                                      f"there, {len(tokens)} came")
            if leaves_after is not None and len(tokens) >= leaves_after and not is_done:
                self.num_left += 1
                self.num_tokens += len(tokens)
                if tokens != self.expected[i][:len(tokens)]:
                    self.wrong.append(f"request {i}: wrong before it was left")
                return False
        if not is_done:
            self.wrong.append(f"request {i}: no [DONE]")
        self.finish(i, tokens)
        return True

    def finish(self, i, tokens):
        self.num_done += 1
        self.num_tokens += len(tokens)
        if tokens != self.expected[i]:
            self.wrong.append(f"request {i}: {len(tokens)} tokens, {len(self.expected[i])} expected, or other ones")


async def run_load(server, load, clients, seconds):
    begin = time.monotonic()
    rss = []

    async def watch():
        while True:
            rss.append((round(time.monotonic() - begin, 1), round(server.rss_mb(), 1)))
            await asyncio.sleep(max(0.2, seconds / 60))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(load.client(n, begin + seconds) for n in range(clients)))
    watching.cancel()
    return time.monotonic() - begin, rss


def load_test(args):
    server = Server(args.fathom, args.checkpoint, args.options)
    vocab = server.ask("/get_server_info")["vocab_size"]
    items = make_items(args.items, vocab, random.Random(args.seed), args.longest_prompt, args.longest_answer)
    expected = [server.ask("/generate", item)["output_ids"] for item in items]
    load = Load(server.port, items, expected, args.disconnects, stream=True)
    seconds, rss = asyncio.run(run_load(server, load, args.clients, args.seconds))
    problems = load.wrong[:]
    limit = time.monotonic() + 60
    while (state := server.state())["num_unfinished"] != 0 and time.monotonic() < limit:
        time.sleep(0.1)
    if state["num_unfinished"] != 0:
        problems.append(f"{state['num_unfinished']} requests are still unfinished")
    server.ask("/flush_cache")
    time.sleep(1.5)
    state = server.state()
    if state["state_used_bytes"] != 0:
        problems.append(f"{state['state_used_bytes']} bytes of states are still in use")
    rss_end = server.rss_mb()
    figures = {"what": "serve_load", "clients": args.clients, "seconds": round(seconds, 1), "answers": load.num_done,
               "hung_up": load.num_left, "tokens": load.num_tokens,
               "tokens_per_second": round(load.num_tokens / seconds), "reconnects": load.num_retries,
               "time_to_first_token": percentiles(load.first), "between_tokens": percentiles(load.between),
               "rss_mb": {"at": rss[::max(1, len(rss) // 12)], "after_flush": round(rss_end, 1)},
               "preemptions": state["num_preemptions"], "hit_tokens": state["num_hit_tokens"],
               "problems": len(problems)}
    code = server.end()
    if code != 0:
        problems.append(f"the server ended with {code}")
    print(json.dumps(figures))
    for problem in problems[:20]:
        print("FAILED:", problem, file=sys.stderr)
    return 1 if problems else 0


def generate_seconds(args, prompts, num_new):
    """Wall and CPU time of `fathom generate`, starting and reading the checkpoint included."""
    with tempfile.TemporaryDirectory() as directory:
        name = os.path.join(directory, "prompts.jsonl")
        with open(name, "w") as file:
            file.writelines(json.dumps({"token_ids": prompt}) + "\n" for prompt in prompts)
        begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([args.fathom, "generate", "--hf-checkpoint", args.checkpoint, "--input", name, "--output",
                        os.path.join(directory, "out.jsonl"), "--max-new-tokens", str(num_new), "--ignore-eos",
                        *args.options], check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (time.monotonic() - begin,
                after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def throughput_test(args):
    """64 requests at a time over HTTP, and the same work in one process; in turns, as the machine may be busy."""
    rng = random.Random(args.seed)
    num_new, at_a_time = args.longest_answer, 64
    server = Server(args.fathom, args.checkpoint, args.options)
    vocab = server.ask("/get_server_info")["vocab_size"]
    prompts = [[rng.randrange(2, vocab) for _ in range(16)] for _ in range(at_a_time * args.waves)]
    items = [{"input_ids": prompt, "sampling_params": {"max_new_tokens": num_new, "ignore_eos": True,
                                                       "sampling_seed": i}} for i, prompt in enumerate(prompts)]

    async def all_of(stream):
        load = Load(server.port, items, [[0] * num_new] * len(items), 0, stream)
        rest = list(range(len(items)))

        async def client():
            connection = await asyncio.open_connection("127.0.0.1", server.port)
            while rest:
                if not await load.request(connection, rest.pop(), None):
                    sys.exit(load.wrong[-1])
            connection[1].close()

        begin, cpu = time.monotonic(), server.cpu_seconds()
        await asyncio.gather(*(client() for _ in range(at_a_time)))
        seconds, cpu = time.monotonic() - begin, server.cpu_seconds() - cpu
        if load.num_tokens != num_new * len(items):
            sys.exit(f"{load.num_tokens} tokens came")
        return seconds, cpu

    tokens = num_new * len(prompts)
    rates = {"generate": [], "http": [], "http_streaming": []}
    cpu = {name: [] for name in rates}

    def note(name, wall, used):
        rates[name].append(tokens / wall)
        cpu[name].append(used)

    for _ in range(args.rounds):
        # What a run costs before its first token falls out of the difference of a long one and a short one.
        start = generate_seconds(args, prompts[:1], 1)
        whole = generate_seconds(args, prompts, num_new)
        note("generate", whole[0] - start[0], whole[1] - start[1])
        for name, stream in (("http", False), ("http_streaming", True)):
            server.ask("/flush_cache")
            note(name, *asyncio.run(all_of(stream)))
    server.end()
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    best = {name: max(values) for name, values in rates.items()}
    print(json.dumps({"what": "serve_throughput", "at_a_time": at_a_time, "new_tokens": num_new,
                      "tokens_per_second": {name: round(value) for name, value in middle.items()},
                      "best": {name: round(value) for name, value in best.items()},
                      "cpu_seconds": {name: round(sorted(values)[len(values) // 2], 2) for name, values in cpu.items()},
                      "share_of_generate": {name: round(value / middle["generate"], 3)
                                            for name, value in middle.items() if name != "generate"}}))
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fathom")
    parser.add_argument("--checkpoint", default=TINY)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--disconnects", type=float, default=0.1, help="share of the requests that are left")
    parser.add_argument("--items", type=int, default=300, help="different requests")
    parser.add_argument("--longest-prompt", type=int, default=96)
    parser.add_argument("--longest-answer", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--waves", type=int, default=4, help="of 64 requests")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="behind --: further options of the program")
    args = parser.parse_args()
    return throughput_test(args) if args.throughput else load_test(args)


if __name__ == "__main__":
    sys.exit(main())
