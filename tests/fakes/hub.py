"""A model hub on loopback, as huggingface_hub's client and lorapod's transfers meet the real one.

Two servers: the hub (metadata, gates, redirects) and a content host that files of LFS are redirected to with a signed
address. Ranges, `If-Range`, ETags, `X-Repo-Commit`, `X-Linked-ETag`, `X-Linked-Size`, `X-Error-Code` are answered as there.
Faults are given by file name and are used up one by one. What was sent is counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 10_000


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    commit: str = ""
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.publish()

    def publish(self) -> None:
        """A new commit on `main`; earlier commits are gone."""
        listing = "".join(f"{n}{hashlib.sha256(c).hexdigest()}" for n, c in sorted(self.files.items()))
        self.commit = hashlib.sha1(listing.encode()).hexdigest()
        self.branches = {"main": self.commit, self.commit: self.commit}


@dataclass
class Fault:
    """`kind`: reset, truncate, stall (the connection stays open and nothing comes), 429, 503, wrong-range, no-range, flip,
    expired; `at`: bytes of the body that still come."""

    kind: str
    at: int = 0
    where: str = "content"
    retry_after: str = "0"


class FakeHub:
    """Starts with `with`; `repos` and `faults` may be changed at any time."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.civitai: dict[int, dict[str, Any]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.tokens: dict[str, set[str]] = {}
        self.sent: Counter[str] = Counter()
        self.requests: list[tuple[str, str, str]] = []
        self.leaks: list[str] = []
        self.bytes_per_second: float | None = None
        self.lock = threading.Lock()
        self.stalled, self.go_on = threading.Event(), threading.Event()

    def __enter__(self) -> FakeHub:
        self._hub = _serve(self, _HubHandler)
        self._content = _serve(self, _ContentHandler)
        self.url = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.content_url = f"http://127.0.0.1:{self._content.server_address[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.go_on.set()
        for server in (self._hub, self._content):
            server.shutdown()
            server.server_close()

    def fault(self, name: str, where: str) -> Fault | None:
        with self.lock:
            waiting = self.faults.get(name.rpartition("/")[2], [])
            found = next((f for f in waiting if f.where == where), None)
            if found is not None:
                waiting.remove(found)
            return found

    def count(self, name: str, sent: int) -> None:
        with self.lock:
            self.sent[name] += sent

    @property
    def sent_bytes(self) -> int:
        return sum(self.sent.values())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print about."""


def _serve(hub: FakeHub, handler: type[_Handler]) -> ThreadingHTTPServer:
    bound = type(handler.__name__, (handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), bound)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    where = ""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with self.hub.lock:
            self.hub.requests.append((self.command, self.where, self.path))
        try:
            self.answer(urlsplit(self.path).path, parse_qs(urlsplit(self.path).query))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        raise NotImplementedError

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say_json(self, value: Any, status: int = 200) -> None:
        self.say(status, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str) -> None:
        self.say(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    def send_file(self, name: str, content: bytes, etag: str, **headers: str) -> None:
        """The file or the range of it that was asked for, with whatever fault is due."""
        fault = self.hub.fault(name, self.where)
        kind = fault.kind if fault else ""
        if fault and kind in ("429", "503"):
            self.say(int(kind), Retry_After=fault.retry_after)
            return
        if kind == "expired":
            self.say(403, b"signature expired")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range")
        ranged = wanted is not None and kind != "no-range" and condition in (None, etag)
        start, end = 0, len(content)
        if wanted is not None and ranged:
            start = int(wanted[1])
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            if start >= len(content) and content:
                self.say(416, Content_Range=f"bytes */{len(content)}")
                return
        body = content[start:end]
        self.send_response(206 if ranged else 200)
        if ranged:
            shift = 7 if kind == "wrong-range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{len(content)}")
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "wrong-range":
            body = body[:1]
        if fault and kind == "flip" and body:
            at = min(fault.at, len(body) - 1)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if fault and kind in ("reset", "truncate", "stall"):
            body = body[: fault.at]
        self._send_body(name, body)
        if kind == "stall":
            self.hub.stalled.set()
            self.hub.go_on.wait(60)
            self.close_connection = True
        if kind in ("reset", "truncate", "wrong-range"):
            self.close_connection = True
            if kind == "reset":
                time.sleep(0.05)  # what was sent arrives before the reset does
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close() if kind == "reset" else self.connection.shutdown(socket.SHUT_WR)

    def _send_body(self, name: str, body: bytes) -> None:
        view = memoryview(body)
        while view:
            piece = view[: 1 << 17]
            self.wfile.write(piece)
            self.hub.count(name, len(piece))
            view = view[len(piece) :]
            if self.hub.bytes_per_second:
                time.sleep(len(piece) / self.hub.bytes_per_second)


class _HubHandler(_Handler):
    where = "hub"

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/api/models/([^/]+/[^/]+)/auth-check", self._auth_check),
            (r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/api/v1/model-versions/(\d+)", self._civitai_version),
            (r"/api/download/models/(\d+)", self._civitai_download),
            (r"/plain/(.+)", self._plain),
            (r"/api/whoami-v2", self._who),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for pattern, route in routes:
            if found := re.fullmatch(pattern, unquote(path)):
                route(*found.groups())
                return
        self.say(404)

    def _visible(self, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and repo_id not in self.hub.tokens.get(self.token or "", set())):
            self.refuse(404 if self.token else 401, "RepoNotFound")
            return None
        if self.token and self.token not in self.hub.tokens:
            self.say(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
            return None
        return repo

    def _allowed(self, repo_id: str, repo: Repo) -> bool:
        if not repo.gated or repo_id in self.hub.tokens.get(self.token or "", set()):
            return True
        self.refuse(403 if self.token else 401, "GatedRepo")
        return False

    def _who(self) -> None:
        if self.token in self.hub.tokens:
            self.say_json({"type": "user", "name": "zoe", "auth": {"accessToken": {"role": "read"}}})
        else:
            self.say(401, b'{"error": "Invalid username or password."}')

    def _auth_check(self, repo_id: str) -> None:
        repo = self._visible(repo_id)
        if repo is not None and self._allowed(repo_id, repo):
            self.say_json({})

    def _info(self, repo_id: str, revision: str = "main") -> None:
        fault = self.hub.fault(repo_id, "info")
        if fault:
            self.say(int(fault.kind), Retry_After=fault.retry_after)
            return
        repo = self._visible(repo_id)
        if repo is None:
            return
        if revision not in repo.branches:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, content in repo.files.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
            if len(content) >= LFS_FROM:
                sha = hashlib.sha256(content).hexdigest()
                one["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(one)
        gated = "auto" if repo.gated else False
        self.say_json(
            {
                "id": repo_id,
                "sha": repo.branches[revision],
                "private": repo.private,
                "gated": gated,
                "siblings": siblings,
            }
        )

    def _tree(self, repo_id: str, revision: str) -> None:
        repo = self._visible(repo_id)
        if repo is None:
            return
        if revision not in repo.branches:
            self.refuse(404, "RevisionNotFound")
            return
        listing = []
        for name, content in repo.files.items():
            one: dict[str, Any] = {"type": "file", "oid": git_sha1(content), "size": len(content), "path": name}
            if len(content) >= LFS_FROM:
                one["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            listing.append(one)
        self.say_json(listing)

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._visible(repo_id)
        if repo is None or not self._allowed(repo_id, repo):
            return
        if revision not in repo.branches:
            self.refuse(404, "RevisionNotFound")
        elif name not in repo.files:
            self.refuse(404, "EntryNotFound")
        else:
            content, commit = repo.files[name], repo.branches[revision]
            if len(content) < LFS_FROM:
                self.send_file(name, content, f'"{git_sha1(content)}"', X_Repo_Commit=commit)
                return
            sha = hashlib.sha256(content).hexdigest()
            self.say(
                302,
                Location=f"{self.hub.content_url}/{repo_id}/{name}?X-Signature=secret",
                X_Repo_Commit=commit,
                X_Linked_ETag=f'"{sha}"',
                X_Linked_Size=str(len(content)),
            )

    def _civitai_version(self, version: str) -> None:
        found = self.hub.civitai.get(int(version))
        if found is None:
            self.say_json({"error": "No model"}, 404)
        elif found.get("_token") and self.token != found["_token"]:
            self.say_json({"error": "Unauthorized"}, 401)
        else:
            self.say_json({k: v for k, v in found.items() if not k.startswith("_")})

    def _civitai_download(self, version: str) -> None:
        found = self.hub.civitai[int(version)]
        if found.get("_token") and self.token != found["_token"]:
            self.say(302, Location=f"{self.hub.url}/plain/login.html")
        else:
            self.say(302, Location=f"{self.hub.content_url}/civitai/{version}?X-Signature=secret")

    def _plain(self, name: str) -> None:
        if name == "login.html":
            self.say(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")
            return
        content = self.hub.repos["plain/files"].files.get(name)
        if content is None:
            self.say(404)
        else:
            self.send_file(name, content, f'"{hashlib.md5(content).hexdigest()}"')


class _ContentHandler(_Handler):
    where = "content"

    def answer(self, path: str, query: dict[str, list[str]]) -> None:
        if self.token:
            self.hub.leaks.append(self.path)
        if "X-Signature" not in query:
            self.say(403)
            return
        parts = unquote(path).strip("/").split("/")
        if parts[0] == "civitai":
            content, name = self.hub.civitai[int(parts[1])]["_content"], "civitai"
        else:
            name = "/".join(parts[2:])
            content = self.hub.repos["/".join(parts[:2])].files[name]
        self.send_file(name, content, f'"{hashlib.sha256(content).hexdigest()}"')
