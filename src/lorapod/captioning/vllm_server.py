"""A vLLM server of our own on this machine, for captions: started on a free port, asked as any OpenAI-compatible service.

vLLM answers many requests at once faster than batches through transformers do. It is used where it is installed; the server
ends with the captioner, and with the process that started it. Not verified: vLLM itself was never run here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import httpx

from lorapod.captioning.base import Answer, Ask, Cost, ItemError, Kind
from lorapod.captioning.openai import OpenAICaptioner
from lorapod.errors import StageFailedError

READY_SECONDS = 900.0
"""Loading and warming up an 8B model takes minutes."""

_POLL_SECONDS = 0.5
_LAST_LINES = 5
_MODEL_TOKENS = 4096
"""729 tokens of a picture, the request, and 512 of an answer fit twice."""


def find_vllm() -> str | None:
    """The command, where it is installed."""
    return shutil.which("vllm")


class VllmCaptioner:
    """A captioner whose model a vLLM server of its own runs.

    Args:
        name: What the captioner is called.
        model: Folder of the model.
        kinds: What the model looks at.

    Raises:
        StageFailedError: The server did not come up.
    """

    at_once = 32

    def __init__(
        self,
        name: str,
        model: Path,
        kinds: frozenset[Kind],
        log: Path,
        *,
        command: str = "vllm",
        environment: Mapping[str, str] | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self.name, self.model, self.kinds = name, model.name, kinds
        key = secrets.token_urlsafe(24)
        port = _free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = log.open("ab")
        argv = [
            command,
            "serve",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--served-model-name",
            model.name,
        ]
        argv += ["--max-model-len", str(_MODEL_TOKENS), "--enable-prefix-caching"]
        # The key goes by the environment: arguments can be read by everyone on the machine.
        env = {**(environment or os.environ), "VLLM_API_KEY": key}
        try:
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            self._log.close()
            raise StageFailedError("vLLM cannot be started", str(error), "Uninstall it, or mend it.") from error
        address = f"http://127.0.0.1:{port}"
        try:
            self._wait(address, log, ready_seconds)
        except BaseException:
            self._end()
            raise
        self._asked = OpenAICaptioner(f"{address}/v1", model.name, key=key)

    def estimate(self, ask: Ask) -> Cost:
        return Cost(0, 0, 0.0)

    async def caption(self, ask: Ask) -> Answer:
        if ask.kind not in self.kinds:
            raise ItemError(f"{self.name} does not look at {ask.kind}s")
        return await self._asked.caption(ask)

    async def close(self) -> None:
        await self._asked.close()
        self._end()

    def _wait(self, address: str, log: Path, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            code = self._process.poll()
            if code is not None:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
                raise StageFailedError(
                    f"vLLM ended with exit status {code} before it was ready",
                    " | ".join(last),
                    f"The whole output is in {log}. Without vLLM, transformers is used: set LORAPOD_VLLM=0.",
                )
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    return
            if time.monotonic() > deadline:
                raise StageFailedError(
                    f"vLLM was not ready after {seconds:.0f} s", f"Its output is in {log}.", "Set LORAPOD_VLLM=0."
                )
            time.sleep(_POLL_SECONDS)

    def _end(self) -> None:
        """Ends the server with all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
