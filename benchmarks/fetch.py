"""Rate of a fetch from a loopback server: lorapod, huggingface_hub and curl, in one run, hashes included.

    python benchmarks/fetch.py [--megabytes 1000] [--rounds 3]

The server is a process of its own that sends one file with `sendfile`, as a hub does (metadata, a redirect to a second
address, ranges). lorapod hashes while it writes; the hub's client and curl do not hash, so theirs is measured twice: as they
are, and with the SHA-256 that lorapod's includes. Files are written to a temporary folder and removed. The rounds take
turns and the best of each counts; on a busy machine all of them are slower than they could be.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c" * 40


def serve(path: Path, sha: str) -> None:
    """Serves `path` as models/bench/one/resolve/.../model.safetensors until it is killed; prints its port."""
    size = path.stat().st_size

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            where = urlsplit(self.path).path
            if where.startswith("/api/models/"):
                lfs = {"sha256": sha, "size": size, "pointerSize": 130}
                sibling = {"rfilename": "model.safetensors", "size": size, "blobId": "b" * 40, "lfs": lfs}
                self.say({"id": "bench/one", "sha": COMMIT, "private": False, "gated": False, "siblings": [sibling]})
            elif "/resolve/" in where:
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{server.server_address[1]}/content")
                for name, value in (
                    ("X-Repo-Commit", COMMIT),
                    ("X-Linked-ETag", f'"{sha}"'),
                    ("X-Linked-Size", str(size)),
                ):
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif where == "/content":
                self.content()
            else:
                self.say({}, 404)

        def say(self, value: object, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def content(self) -> None:
            wanted = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
            ranged = bool(wanted[1])
            start = int(wanted[0]) if ranged else 0
            end = int(wanted[2]) + 1 if ranged and wanted[2] else size
            self.send_response(206 if ranged else 200)
            if ranged:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("ETag", f'"{sha}"')
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if self.command == "GET":
                with path.open("rb") as file:
                    self.connection.sendfile(file, start, end - start)

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lorapod(folder: Path) -> Path:
    from lorapod.models.catalogue import Entry
    from lorapod.models.fetch import pull
    from lorapod.workspace import Workspace

    spec = {"layout": "original", "part": "transformer", "repo": "bench/one", "path": "model.safetensors"}
    entry = Entry.model_validate(
        {
            "name": "bench", "title": "bench", "family": "wan", "modality": "clip", "licence": "none",
            "files": [spec], "trainers": {"builtin": {"needs": ["original/*"]}},
        }
    )  # fmt: skip
    pull(entry, "builtin", Workspace(folder))
    return folder / "models/bench/original/model.safetensors"


def hub_client(folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download("bench/one", "model.safetensors", revision=COMMIT, local_dir=folder))


def curl(folder: Path) -> Path:
    target = folder / "model.safetensors"
    address = f"{os.environ['HF_ENDPOINT']}/bench/one/resolve/{COMMIT}/model.safetensors"
    subprocess.run(["curl", "-sSfL", "-o", str(target), address], check=True)
    return target


def timed(how: Callable[[Path], Path], root: Path, sha: str, check: bool) -> float:
    """Seconds of one fetch into an empty folder."""
    folder = root / "out"
    folder.mkdir()
    started = time.perf_counter()
    found = how(folder)
    if check and sha256(found) != sha:
        sys.exit(f"{how.__name__} gave other bytes")
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--serve", nargs=2, metavar=("PATH", "SHA"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        serve(Path(given.serve[0]), given.serve[1])
        return
    with tempfile.TemporaryDirectory(prefix="lorapod-fetch-") as name:
        root = Path(name)
        source = root / "source"
        write_safetensors(source, given.megabytes * 1_000_000)
        sha = sha256(source)
        argv = [sys.executable, __file__, "--serve", str(source), sha]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        os.environ |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(root / "hf"),
        }
        ways = [
            ("lorapod (hashed while written)", lorapod, False),
            ("huggingface_hub", hub_client, False),
            ("huggingface_hub, then SHA-256", hub_client, True),
            ("curl", curl, False),
            ("curl, then SHA-256", curl, True),
        ]
        best: dict[str, float] = {}
        try:
            for _ in range(given.rounds):
                for label, how, check in ways:
                    best[label] = min(best.get(label, 1e9), timed(how, root, sha, check))
        finally:
            server.kill()
            server.wait()
        print(f"{given.megabytes} MB from loopback, best of {given.rounds}, load {os.getloadavg()[0]:.1f}:")
        for label, seconds in best.items():
            print(f"  {label:<32} {given.megabytes / seconds:7.0f} MB/s  {seconds:6.2f} s")


def write_safetensors(path: Path, size: int) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        block = os.urandom(1 << 24)
        while size:
            file.write(block[:size])
            size -= min(size, len(block))


if __name__ == "__main__":
    main()
