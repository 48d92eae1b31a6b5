"""A Hub on this machine, for tests: one server that answers like huggingface.co, one like its CDN.

Repositories are dictionaries of path -> bytes. Files of `lfs_from` bytes and more are "large": the Hub redirects
to the CDN, another port, with a signature that may expire. `Faults` makes the servers misbehave on purpose.
Every request is kept in `Hub.requests`, so that a test can see who was told the token. With a certificate both servers
speak HTTPS. Needs the standard library alone.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import re
import socket
import ssl
import threading
import urllib.parse


@functools.lru_cache(maxsize=256)
def sha256(data):
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(maxsize=256)
def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """One repository: commits of files, and names for the commits."""

    def __init__(self, files, kind="models", private=False, lfs_from=1000):
        self.kind, self.private, self.lfs_from = kind, private, lfs_from
        self.commits, self.refs = {}, {}
        self.commit(files)

    def commit(self, files):
        sha = hashlib.sha1(repr(sorted((p, git_sha1(d)) for p, d in files.items())).encode()).hexdigest()
        self.commits[sha] = files
        self.refs["main"] = sha
        return sha

    def is_large(self, data):
        return len(data) >= self.lfs_from

    def etag(self, data):
        return sha256(data) if self.is_large(data) else git_sha1(data)


class Faults:
    """What goes wrong, and how often. Numbers count down."""

    def __init__(self):
        self.relative_redirect = False  # the Hub sends resolve/ somewhere else on itself first
        self.ignore_ranges = False  # 200 with everything
        self.refuse_ranges = False  # 416 to every range
        self.close_after = None  # bytes of a body before the connection is cut
        self.close_times = 0
        self.rate_limits = 0  # answers 429 with RateLimit
        self.server_errors = 0  # answers 503
        self.expire_after = None  # CDN answers per signature, then 403
        self.corrupt = set()  # paths whose bytes have one bit flipped
        self.corrupt_times = 10**9
        self.page_size = 1000  # files on a page of the listing
        self.extra_paths = []  # raw paths put into the listing
        self.slow_piece = None  # (bytes, seconds): a body that drips
        self.extra_bytes = 0  # more than promised in a 206
        self.listing = None  # replaces the body of the listing


class Hub:
    def __init__(self, repos, token=None, certificate=None):
        self.repos, self.token, self.certificate = repos, token, certificate
        self.faults = Faults()
        self.requests = []  # (server, method, path, headers)
        self.lock = threading.Lock()
        self.signatures = {}
        self.next_signature = 0

    def start(self):
        self.hub = _serve(_HubHandler, self)
        self.cdn = _serve(_CdnHandler, self)
        scheme = "https" if self.certificate else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{self.hub.server_address[1]}"
        self.cdn_endpoint = f"{scheme}://127.0.0.1:{self.cdn.server_address[1]}"

    def stop(self):
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()

    def sign(self, key):
        with self.lock:
            self.next_signature += 1
            self.signatures[str(self.next_signature)] = self.faults.expire_after
            return f"{self.cdn_endpoint}/{key}?Signature={self.next_signature}"

    def count(self, server=None, method=None, containing=""):
        with self.lock:
            return sum((server in (None, s)) and (method in (None, m)) and containing in p
                       for s, m, p, _ in self.requests)


def _serve(handler, hub):
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request, client_address):
            pass  # clients that hang up are part of the game

        def finish_request(self, request, client_address):
            if hub.certificate:  # here, in the connection's own thread
                request = tls.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)

    if hub.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*hub.certificate)
    server = Server(("127.0.0.1", 0), handler)
    server.hub = hub
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def note(self):
        hub = self.server.hub
        with hub.lock:
            hub.requests.append((self.kind, self.command, self.path, dict(self.headers.items())))
        return hub

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status, code, message, headers=()):
        self.answer(status, [("X-Error-Code", code), ("X-Error-Message", message), *headers],
                    json.dumps({"error": message}).encode())

    def is_troubled(self, hub):
        with hub.lock:
            if hub.faults.rate_limits > 0:
                hub.faults.rate_limits -= 1
                status, headers = 429, [("RateLimit", '"api";r=0;t=0'), ("RateLimit-Policy", '"fixed";q=1')]
            elif hub.faults.server_errors > 0:
                hub.faults.server_errors -= 1
                status, headers = 503, []
            else:
                return False
        self.answer(status, headers)
        return True

    def send_file(self, hub, data, headers):
        faults = hub.faults
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end, status = 0, len(data), 200
        if match and faults.refuse_ranges:
            return self.answer(416, [("Content-Range", f"bytes */{len(data)}")])
        if match and not faults.ignore_ranges:
            begin, end, status = int(match[1]), int(match[2] or len(data) - 1) + 1, 206
            if begin >= len(data):
                return self.answer(416, [("Content-Range", f"bytes */{len(data)}")])
            end = min(end, len(data))
            headers = [*headers, ("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")]
        body = data[begin:end] + bytes(faults.extra_bytes if status == 206 else 0)
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body))), ("Accept-Ranges", "bytes")]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = None
        with hub.lock:
            if faults.close_times > 0 and faults.close_after is not None and len(body) > faults.close_after:
                faults.close_times -= 1
                cut = faults.close_after
        if cut is not None:
            self.wfile.write(body[:cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        if faults.slow_piece:
            size, seconds = faults.slow_piece
            for at in range(0, len(body), size):
                self.wfile.write(body[at:at + size])
                self.wfile.flush()
                threading.Event().wait(seconds)
            return None
        self.wfile.write(body)
        return None


class _HubHandler(_Handler):
    kind = "hub"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.note()
        if self.is_troubled(hub):
            return
        url = urllib.parse.urlsplit(self.path)
        path = url.path
        if path.startswith("/moved/"):
            path = path[len("/moved"):]
        elif hub.faults.relative_redirect and "/resolve/" in path:
            self.answer(307, [("Location", "/moved" + path)])
            return
        query = urllib.parse.parse_qs(url.query)
        api = re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)/(revision|tree)/([^/]+)/?", path)
        resolve = re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if api:
            self.api(hub, *api.groups(), query)
        elif resolve:
            self.resolve(hub, (resolve[1] or "models/")[:-1], *resolve.groups()[1:])
        else:
            self.error(404, "", "no such page")

    def find(self, hub, kind, name, revision):
        repo = hub.repos.get(name)
        if repo is None or repo.kind != kind:
            self.error(401 if hub.token is None else 404, "RepoNotFound", "Repository not found")
            return None, None
        if repo.private and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.error(401, "GatedRepo", "Access to it is restricted")
            return None, None
        revision = urllib.parse.unquote(revision)
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self.error(404, "RevisionNotFound", "Invalid rev id")
            return None, None
        return repo, commit

    def api(self, hub, kind, name, what, revision, query):
        repo, commit = self.find(hub, kind, name, revision)
        if repo is None:
            return
        if what == "revision":
            info = {"id": name, "sha": commit, "siblings": [{"rfilename": p} for p in repo.commits[commit]]}
            self.answer(200, [("Content-Type", "application/json")], json.dumps(info).encode())
            return
        entries, folders = [], set()
        for path, data in repo.commits[commit].items():
            folder = path.rpartition("/")[0]
            if folder and folder not in folders:
                folders.add(folder)
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": folder})
            entry = {"type": "file", "oid": git_sha1(data), "size": len(data), "path": path}
            if repo.is_large(data):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        entries += [{"type": "file", "oid": "0" * 40, "size": 1, "path": p} for p in hub.faults.extra_paths]
        size, begin = hub.faults.page_size, int(query.get("cursor", ["0"])[0])
        headers = [("Content-Type", "application/json")]
        if begin + size < len(entries):
            rest = self.path.partition("?")[0]
            headers.append(("Link", f"<{hub.endpoint}{rest}?recursive=true&cursor={begin + size}>; rel=\"next\""))
        body = hub.faults.listing or json.dumps(entries[begin:begin + size]).encode()
        self.answer(200, headers, body)

    def resolve(self, hub, kind, name, revision, path):
        repo, commit = self.find(hub, kind, name, revision)
        if repo is None:
            return
        path = urllib.parse.unquote(path)
        data = repo.commits[commit].get(path)
        headers = [("X-Repo-Commit", commit)]
        if data is None:
            self.error(404, "EntryNotFound", "Entry not found", headers)
            return
        if repo.is_large(data):
            headers += [("X-Linked-Etag", f'"{repo.etag(data)}"'), ("X-Linked-Size", str(len(data)))]
            self.answer(302, [*headers, ("Location", hub.sign(f"{name}/{commit}/{urllib.parse.quote(path)}"))])
        else:
            self.send_file(hub, _corrupted(hub, path, data), [*headers, ("ETag", f'W/"{repo.etag(data)}"')])


class _CdnHandler(_Handler):
    kind = "cdn"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.note()
        if self.is_troubled(hub):
            return
        url = urllib.parse.urlsplit(self.path)
        signature = urllib.parse.parse_qs(url.query).get("Signature", [""])[0]
        with hub.lock:
            left = hub.signatures.get(signature, 0)
            if left is not None and left > 0:
                hub.signatures[signature] = left - 1
        if left == 0:
            self.answer(403, [], b"Request has expired")
            return
        owner, name, commit, path = url.path.lstrip("/").split("/", 3)
        path = urllib.parse.unquote(path)
        data = hub.repos[f"{owner}/{name}"].commits[commit][path]
        self.send_file(hub, _corrupted(hub, path, data), [("ETag", '"something-else"')])


def _corrupted(hub, path, data):
    with hub.lock:
        if path not in hub.faults.corrupt or hub.faults.corrupt_times <= 0:
            return data
        hub.faults.corrupt_times -= 1
    return data[:-1] + bytes([data[-1] ^ 1])


@contextlib.contextmanager
def serve_hub(repos, token=None, certificate=None):
    """@param certificate (file of the certificate, file of its key): HTTPS."""
    hub = Hub(repos, token, certificate)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()
