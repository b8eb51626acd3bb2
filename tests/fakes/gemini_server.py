"""Google's Gemini API on loopback, as google-genai meets it: captions inline and by the Files API, with its faults.

Requests are checked as the service checks them (key, model, base64 of either alphabet, a file that is ready, frame rates),
under `/v1` and `/v1beta` and in both spellings of its JSON. Faults are set for the next requests, or by an item's colour or
name. What is left of uploaded files is counted.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

MODELS = ("gemini-3.8-flash", "gemini-3.5-flash-lite")


@dataclass
class FakeGemini:
    """Starts with `with`.

    Attributes:
        polls: How often an uploaded file is PROCESSING before it is ACTIVE.
        fails: Uploaded files end as FAILED.
        next_faults: Of the next requests for captions: see `_Handler._answer`.
    """

    key: str = "secret-key"
    polls: int = 1
    fails: bool = False
    seconds: float = 0.0
    next_faults: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.requests: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()

    def __enter__(self) -> FakeGemini:
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"fake": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put_file(self, name: str, display_name: str) -> None:
        """A file that someone left."""
        self.files[name] = {"name": name, "displayName": display_name, "mimeType": "video/mp4", "state": "ACTIVE"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print about."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeGemini
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        if path == "models":
            self._say({"models": [{"name": f"models/{name}", "displayName": name} for name in MODELS]})
        elif path == "files":
            self._say({"files": list(self.fake.files.values())})
        elif path in self.fake.files:
            file = self.fake.files[path]
            with self.fake.lock:
                self.fake.looks[path] += 1
                if file["state"] == "PROCESSING" and self.fake.looks[path] >= self.fake.polls:
                    self._ripen(file)
            self._say(file)
        else:
            self._fail(404, "NOT_FOUND", f"{path} is not found")

    def do_DELETE(self) -> None:
        path = self._path()
        if path is None:
            return
        self.fake.counts["deleted"] += 1
        if self.fake.files.pop(path, None) is None:
            self._fail(403, "PERMISSION_DENIED", "You do not have permission to access the File.")
        else:
            self._say({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/upload-session/"):
            self._take(self.path.rpartition("/")[2], body)
            return
        path = self._path()
        if path is None:
            return
        if path == "upload/files":
            self._begin(json.loads(body)["file"])
            return
        model = re.fullmatch(r"models/([\w.-]+):generateContent", path)
        if model is None:
            self._fail(404, "NOT_FOUND", f"{path} is not found")
        elif model[1] not in MODELS:
            what = f"models/{model[1]} is not found for API version v1, or is not supported for generateContent."
            self._fail(404, "NOT_FOUND", what)
        else:
            self._generate(json.loads(body))

    def _path(self) -> str | None:
        """The path without its version; None where the key was refused."""
        path = re.sub(r"^/(upload/)?v1(?:beta)?/", r"\1", urlsplit(self.path).path).lstrip("/")
        if self.headers.get("x-goog-api-key") != self.fake.key:
            self._fail(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")
            return None
        return path

    def _begin(self, file: dict[str, Any]) -> None:
        assert self.headers.get("X-Goog-Upload-Protocol") == "resumable"
        with self.fake.lock:
            number = len(self.fake.contents) + 1
            name = f"files/up-{number}"
            self.fake.contents[name] = b""
            mime_type = file.get("mime_type") or file.get("mimeType")
            self.fake.files[name] = {
                "name": name,
                "displayName": file.get("display_name") or file.get("displayName"),
                "mimeType": mime_type,
                "sizeBytes": str(file.get("size_bytes") or file.get("sizeBytes") or 0),
                "uri": f"{self.fake.url}/v1/{name}",
                "state": "PROCESSING",
            }
        self._send(200, b"{}", {"X-Goog-Upload-URL": f"{self.fake.url}/upload-session/up-{number}"})

    def _take(self, session: str, body: bytes) -> None:
        name = f"files/{session}"
        assert int(self.headers["X-Goog-Upload-Offset"]) == len(self.fake.contents[name])
        self.fake.contents[name] += body
        if "finalize" not in self.headers["X-Goog-Upload-Command"]:
            self._send(200, b"", {"X-Goog-Upload-Status": "active"})
            return
        self.fake.counts["uploaded"] += 1
        file = self.fake.files[name]
        if self.fake.polls == 0:
            self._ripen(file)
        self._send(200, json.dumps({"file": file}).encode(), {"X-Goog-Upload-Status": "final"})

    def _ripen(self, file: dict[str, Any]) -> None:
        file["state"] = "FAILED" if self.fake.fails else "ACTIVE"
        if self.fake.fails:
            file["error"] = {"code": 3, "message": "The video could not be decoded."}

    def _generate(self, request: dict[str, Any]) -> None:
        fake = self.fake
        with fake.lock:
            fake.requests.append(request)
            fault = fake.next_faults.popleft() if fake.next_faults else ""
        problem = self._problem(request)
        if problem:
            self._fail(400, "INVALID_ARGUMENT", problem)
            return
        time.sleep(fake.seconds)
        self._answer(request, fault)

    def _problem(self, request: dict[str, Any]) -> str:
        parts = request["contents"][0]["parts"]
        if "text" in parts[0]:
            return "Media belongs before the text"
        media = parts[0]
        inline, by_file = _get(media, "inlineData"), _get(media, "fileData")
        if inline:
            raw = inline["data"].replace("-", "+").replace("_", "/")
            content = base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True)
            if len(raw) > 20_000_000:
                return "Request payload size exceeds the limit: 20971520 bytes."
            self.seen = hashlib.sha256(content).hexdigest()[:8] + _colour(content)
        elif by_file:
            name = "files/" + _get(by_file, "fileUri").rpartition("/")[2]
            file = self.fake.files.get(name)
            if file is None or file["state"] != "ACTIVE":
                return f"The File {name} is not in an ACTIVE state and usage is not allowed."
            self.seen = hashlib.sha256(self.fake.contents[name]).hexdigest()[:8]
        else:
            return "No media"
        meta = _get(media, "videoMetadata") or {}
        if not 0 < meta.get("fps", 1.0) <= 24:
            return "fps has to be in (0, 24]"
        return ""

    def _answer(self, request: dict[str, Any], fault: str) -> None:
        usage = {"promptTokenCount": 800, "candidatesTokenCount": 30, "thoughtsTokenCount": 100, "totalTokenCount": 930}
        text = f"A plain scene {self.seen}."
        candidate: dict[str, Any] = {
            "content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0
        }  # fmt: skip
        reply: dict[str, Any] = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "fake"}
        match fault:
            case "prompt blocked":
                reply = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
            case "answer blocked":
                reply["candidates"] = [{"finishReason": "SAFETY", "index": 0}]
            case "all thought":
                reply["candidates"] = [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS", "index": 0}]
            case "cut":
                candidate["finishReason"] = "MAX_TOKENS"
            case "thoughts":
                candidate["content"]["parts"].insert(0, {"text": "Hm.", "thought": True})
            case "refusal":
                candidate["content"]["parts"] = [{"text": "I'm sorry, but I can't help with that."}]
            case "nothing":
                reply = {}
            case "429":
                detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
                self._fail(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", [detail])
                return
            case "429 day":
                violation = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "20"}
                detail = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}  # type: ignore[dict-item]
                self._fail(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", [detail])
                return
            case "503":
                self._fail(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")
                return
            case "500":
                self._fail(500, "INTERNAL", "An internal error has occurred.")
                return
            case "broken":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "4000")
                self.end_headers()
                self.wfile.write(b'{"candidates": [{"cont')
                self.wfile.flush()
                self.close_connection = True
                return
        self._say(reply)

    def _fail(self, code: int, status: str, message: str, details: list[dict[str, Any]] | None = None) -> None:
        error = {"code": code, "message": message, "status": status, "details": details or []}
        self._send(code, json.dumps({"error": error}).encode(), {})

    def _say(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _get(thing: dict[str, Any], name: str) -> Any:
    """A field in either spelling."""
    snake = re.sub(r"(?<=[a-z])([A-Z])", lambda match: f"_{match[1].lower()}", name)
    return thing.get(name, thing.get(snake))


def _colour(content: bytes) -> str:
    from PIL import Image

    try:
        pixel = Image.open(io.BytesIO(content)).convert("RGB").resize((1, 1)).getpixel((0, 0))
    except OSError:
        return ""
    return f" {pixel}"
