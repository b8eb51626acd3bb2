"""An OpenAI-compatible service on loopback, as the real client meets vLLM, OpenRouter and OpenAI.

Chat completions with pictures as data URLs, `/v1/models`, keys, and the errors of those services in their own shapes. What
it is asked is checked as they check it: JPEG data that decodes, a model that it has, roles in order. Faults come by chance
(`chance`, drawn by the picture's own bytes and how often it was asked before, so that a test comes out the same each time)
or are set for the next requests (`next_faults`). Requests and how many are out at a time are counted.

Answers are made of the picture's colour: what was looked at can be told from what is said.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hashlib
import io
import json
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from PIL import Image

FAULTS = ("429", "503", "500", "cut", "reset", "slow", "refusal", "filter", "length", "empty", "bad json")


@dataclass
class FakeOpenAI:
    """Starts with `with`; everything may be changed at any time.

    Attributes:
        seconds: How long an answer takes.
        chance: Of each fault, 0..1.
        key: That has to be sent; empty for none.
        stands: Most requests out at a time; more get 429.
        always: Fault of a picture's name in its colour: `{(r, g, b): "filter"}`.
        cost: Dollars that `usage.cost` tells, as OpenRouter does.
        refuses: Parameters answered by 400.
    """

    seconds: float = 0.0
    chance: dict[str, float] = field(default_factory=dict)
    key: str = ""
    models: tuple[str, ...] = ("fake-vl",)
    stands: int = 1000
    retry_after: str | None = "0.05"
    always: dict[tuple[int, int, int], str] = field(default_factory=dict)
    cost: float | None = None
    refuses: tuple[str, ...] = ()
    sees: bool = True
    next_faults: deque[str] = field(default_factory=deque)
    seed: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()  # by picture
        self.answered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.out = self.most_out = 0
        self.keep_requests = True

    def __enter__(self) -> FakeOpenAI:
        handler = type("Bound", (_Handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, picture: str, colour: tuple[int, int, int]) -> str:
        """The fault of this request; empty for none."""
        if self.next_faults:
            return self.next_faults.popleft()
        if colour in self.always:
            return self.always[colour]
        drawn = random.Random(f"{self.seed}{picture}{self.asked[picture]}").random()
        for name, chance in self.chance.items():
            drawn -= chance
            if drawn < 0:
                return name
        return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to print about."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeOpenAI
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.path == "/v1/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in self.fake.models]
            self._say(200, {"object": "list", "data": listed})
        else:
            self._fail(404, "Not Found", "not_found_error")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._may():
            return
        if self.path != "/v1/chat/completions":
            self._fail(404, "Not Found", "not_found_error")
            return
        fake = self.fake
        with fake.lock:
            fake.out += 1
            fake.most_out = max(fake.most_out, fake.out)
            is_too_many = fake.out > fake.stands
        try:
            self._complete(json.loads(body), is_too_many)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with fake.lock:
                fake.out -= 1

    def _may(self) -> bool:
        sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.fake.key and sent != self.fake.key:
            shown = sent[:3] + "***"
            self._fail(401, f"Incorrect API key provided: {shown}.", "invalid_request_error", code="invalid_api_key")
            return False
        return True

    def _complete(self, request: dict[str, Any], is_too_many: bool) -> None:
        fake = self.fake
        if request.get("model") not in fake.models:
            what = f"The model `{request.get('model')}` does not exist."
            self._fail(404, what, "NotFoundError", code=404)
            return
        for name in fake.refuses:
            if name in request:
                what = f"Unsupported parameter: '{name}' is not supported with this model."
                self._fail(400, what, "invalid_request_error", code="unsupported_parameter", param=name)
                return
        media, colour, problem = _looked_at(request)
        if problem:
            self._fail(400, problem, "BadRequestError", code=400)
            return
        if not fake.sees:
            self._fail(400, "At most 0 image(s) may be provided in one prompt.", "BadRequestError", code=400)
            return
        with fake.lock:
            fault = "429" if is_too_many else fake.fault_for(media, colour)
            fake.asked[media] += 1
            fake.times.append(time.monotonic())
            fake.faults[fault] += 1
            if fake.keep_requests:
                fake.requests.append(request)
        time.sleep(fake.seconds * (5 if fault == "slow" else 1) if fault not in ("429", "503") else 0)
        self._answer(request, media, colour, "" if fault == "slow" else fault)

    def _answer(self, request: dict[str, Any], media: str, colour: tuple[int, int, int], fault: str) -> None:
        fake = self.fake
        headers = {"Retry-After": fake.retry_after} if fake.retry_after is not None else {}
        match fault:
            case "429":
                self._fail(429, "Rate limit reached for requests", "requests", code="rate_limit_exceeded", **headers)
            case "429 date":
                when = email.utils.formatdate(time.time() + 2, usegmt=True)
                self._fail(429, "Rate limit reached", "requests", code="rate_limit_exceeded", **{"Retry-After": when})
            case "429 quota":
                self._fail(429, "You exceeded your current quota.", "insufficient_quota", code="insufficient_quota")
            case "402":
                self._fail(402, "Insufficient credits", "payment", code=402)
            case "403 moderation":  # OpenRouter's shape
                error = {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["sexual"]}}
                self._say(403, {"error": error})
            case "503":
                self._fail(503, "Loading model", "unavailable_error", code=503, **headers)
            case "500":
                self._fail(500, "Internal server error", "server_error")
            case "bad json":
                self._send(200, b'{"choices": [', {})
            case "no choices":  # OpenRouter, where a provider failed
                self._say(200, {"error": {"code": 502, "message": "Provider returned error"}})
            case "cut" | "reset":
                self._cut(is_reset=fault == "reset")
            case _:
                self._say(200, self._completion(request, media, colour, fault))

    def _completion(
        self, request: dict[str, Any], media: str, colour: tuple[int, int, int], fault: str
    ) -> dict[str, Any]:
        fake = self.fake
        words = f"a plain square of the colour {colour[0]} {colour[1]} {colour[2]}"
        asked = "".join(part["text"] for part in request["messages"][-1]["content"] if part["type"] == "text")
        if "short tags" in asked:
            words = f"square, plain, colour {colour[0]} {colour[1]} {colour[2]}"
        elif "to 130 words" in asked:
            words = f"{words}, seen from straight ahead and lit evenly from edge to edge."
        texts = {"refusal": "I'm sorry, but I can't help with that.", "length": words[:20], "empty": ""}
        texts |= {"think": f"<think>What is it? A square.</think>\n\n{words}", "lines": words.replace(" of", "\n\nof")}
        reasons = {"filter": "content_filter", "length": "length"}
        message: dict[str, Any] = {"role": "assistant", "content": texts.get(fault, words)}
        message |= {"reasoning_content": "Let me look at it."}
        if fault == "filter":
            message["content"] = None
        usage: dict[str, Any] = {"prompt_tokens": 300, "completion_tokens": 12, "total_tokens": 312}
        if fake.cost is not None:
            usage["cost"] = fake.cost
        with fake.lock:
            if fault not in ("refusal", "length", "empty", "filter"):
                fake.answered[media] += 1
        choice = {"index": 0, "message": message, "finish_reason": reasons.get(fault, "stop"), "logprobs": None}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request["model"],
            "choices": [choice],
            "usage": usage,
        }

    def _cut(self, *, is_reset: bool) -> None:
        """Ends the connection in the middle of the body."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "4000")
        self.end_headers()
        self.wfile.write(b'{"id": "chatcmpl-1", "choices": [{"mess')
        self.wfile.flush()
        if is_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if is_reset:
            self.connection.close()

    def _fail(
        self, status: int, message: str, kind: str, *, code: Any = None, param: str | None = None, **headers: str
    ) -> None:
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self._send(status, json.dumps(body).encode(), headers)

    def _say(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _looked_at(request: dict[str, Any]) -> tuple[str, tuple[int, int, int], str]:
    """Hash of the first picture or clip, its colour, and what is wrong with the request."""
    nothing = ("", (0, 0, 0))
    messages = request.get("messages") or []
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], ["system", "user"]):
        return *nothing, f"Unexpected roles {roles}"
    parts = messages[-1]["content"]
    urls = [(part["type"], part[part["type"]]["url"]) for part in parts if part["type"] != "text"]
    if not urls:
        return *nothing, "No media"
    colour: tuple[int, int, int] | None = None
    first = ""
    for kind, url in urls:
        head, _, data = url.partition(",")
        try:
            raw = base64.b64decode(data, validate=True)
        except binascii.Error:
            return *nothing, "Invalid base64"
        if kind == "image_url":
            try:
                image = Image.open(io.BytesIO(raw))
                image.load()
            except (OSError, SyntaxError):
                return *nothing, "cannot identify image file"
            if head != f"data:image/{(image.format or '').lower()};base64":
                return *nothing, f"{head} does not hold a {image.format}"
            pixel = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
            assert isinstance(pixel, tuple)
            colour = colour or tuple(round(value / 8) * 8 for value in pixel)  # type: ignore[assignment]
        first = first or hashlib.sha256(raw).hexdigest()
    return first, colour or (0, 0, 0), ""
