"""Captions by Google's Gemini, for clips and pictures, through google-genai.

Clips go as they are: inside the request where they are small, else by the Files API, where they are waited for and always
deleted afterwards. They are looked at with as many frames a second as make about a dozen frames, since the service's own one
a second sees no motion. The client's own retries are off: the runner knows better when to ask again. What the service blocks
is told apart from what fails. Source of the wire's facts: the client's and the API's documentation, and recorded requests.

Not covered: Vertex AI, the Batch API.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorapod.captioning.base import Answer, Ask, BusyError, Cost, DeclinedError, ItemError, Kind
from lorapod.captioning.media import picture_jpeg
from lorapod.captioning.registry import Options
from lorapod.data.names import shown
from lorapod.data.threads import cores
from lorapod.errors import LorapodError, RequestError

if TYPE_CHECKING:
    from google.genai import types

PICTURE_SIDE = 1024

MOST_INLINE_BYTES = 14_000_000
"""The service takes requests of 20 MB; base64 adds a third."""

MOST_FILE_BYTES = 2_000_000_000
"""Of one file of the Files API."""

FRAMES = 12
"""That a clip is looked at with, where no rate is given."""

MOST_FPS = 24.0
ANSWER_SECONDS, READY_SECONDS = 300.0, 300.0
AT_ONCE = 8

_THINKING_TOKENS = 2000
"""Room for thoughts beside the caption: they count as output, and models of this line cannot be kept from thinking."""

_FRAME_TOKENS, _AUDIO_TOKENS, _PICTURE_TOKENS, _LETTERS_A_TOKEN = 70, 25, 1120, 4
"""A frame at default resolution, a second of sound, a picture, letters; for estimates alone."""

_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mov", ".webm": "video/webm", ".avi": "video/avi",
    ".mpg": "video/mpg", ".mpeg": "video/mpeg", ".wmv": "video/wmv", ".flv": "video/x-flv", ".3gp": "video/3gpp",
}  # fmt: skip
"""What the service takes; other containers are put into MP4, as they are or encoded anew."""

_LABEL = "lorapod-caption-"
"""What names of uploaded files begin with, by which left ones are found."""

_BLOCKED = frozenset(
    {
        "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION", "MODEL_ARMOR", "LANGUAGE",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Price:
    """Dollars a million tokens."""

    input: float
    output: float

    def of(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


def create(options: Options) -> GeminiCaptioner:
    """From the options and environment.

    Raises:
        RequestError: There is no key, or the model is one that is gone.
    """
    environment = options.environment
    key = environment.get("GOOGLE_API_KEY") or environment.get("GEMINI_API_KEY") or ""
    if not key:
        raise RequestError(
            "Gemini needs a key",
            "Neither GEMINI_API_KEY nor GOOGLE_API_KEY is set, in the environment or the workspace's .env.",
            "Get one from Google AI Studio and set it, or take another captioner.",
        )
    address = options.endpoint or environment.get("GOOGLE_GEMINI_BASE_URL") or None
    price = Price(*options.price) if options.price else None
    return GeminiCaptioner(key, options.model, address=address, price=price)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((resources.files(__package__) / "gemini.toml").read_text(encoding="utf-8"))


def default_model() -> str:
    """The model that is asked where none is named."""
    return str(_table()["default"])


def price_of(model: str, today: datetime.date | None = None) -> Price | None:
    """What a model costs today; None where it is not known."""
    entry = _table()["models"].get(model)
    if entry is None:
        return None
    if "until" in entry and (today or datetime.datetime.now(datetime.UTC).date()) > entry["until"]:
        return Price(*entry["later"])
    return Price(entry["input"], entry["output"])


class GeminiCaptioner:
    """One Gemini model.

    Args:
        key: Of the Gemini API; sent in a header, never in an address.
        model: Its id; empty for the default.
        address: Of the service, in place of Google's.
        price: In place of that of the table.
        fps: Frames a second that clips are looked at with; None for about a dozen frames in all.
        poll_seconds: Between looks at a file that is not ready.

    Raises:
        RequestError: The model is one that is gone.
    """

    name = "gemini"
    kinds: frozenset[Kind] = frozenset({"picture", "clip"})
    at_once = AT_ONCE

    def __init__(
        self,
        key: str,
        model: str = "",
        *,
        address: str | None = None,
        price: Price | None = None,
        fps: float | None = None,
        poll_seconds: float = 2.0,
    ) -> None:
        from google import genai
        from google.genai import types

        self.model = (model or default_model()).removeprefix("models/")
        if self.model.startswith(tuple(_table()["retired"]["prefixes"])):
            raise RequestError(
                f"The model {self.model} is gone", "Google has shut it down.", f"Use {default_model()}, the default."
            )
        self.price = price or price_of(self.model)
        self.fps, self.poll_seconds = fps, poll_seconds
        http = types.HttpOptions(base_url=address, timeout=int(ANSWER_SECONDS * 1000))
        self._client = genai.Client(api_key=key, http_options=http)
        self._reading = ThreadPoolExecutor(max(2, cores()), thread_name_prefix="captions")
        self._uploaded: set[str] = set()
        self._is_swept = False

    def estimate(self, ask: Ask) -> Cost:
        tokens = (len(ask.system) + len(ask.prompt)) // _LETTERS_A_TOKEN
        if ask.kind == "clip":
            seconds = ask.seconds or 5.0
            tokens += round(seconds * (self._fps_for(seconds) * _FRAME_TOKENS + _AUDIO_TOKENS))
        else:
            tokens += _PICTURE_TOKENS
        written = ask.max_tokens // 2 + _THINKING_TOKENS // 4
        return Cost(tokens, written, self.price.of(tokens, written) if self.price else None)

    async def caption(self, ask: Ask) -> Answer:
        from google.genai import errors

        loop = asyncio.get_running_loop()
        try:
            if ask.kind == "picture":
                jpeg = await loop.run_in_executor(self._reading, picture_jpeg, ask, PICTURE_SIDE)
                return await self._asked(ask, _part(jpeg, "image/jpeg"))
            content, mime_type = await loop.run_in_executor(self._reading, _clip, ask.path)
            if len(content) <= MOST_INLINE_BYTES:
                return await self._asked(ask, self._timed(_part(content, mime_type), ask))
            return await self._through_files(ask, content, mime_type)
        except errors.APIError as error:
            raise _told_apart(error, self.model, ask) from error
        except (TimeoutError, OSError) as error:
            raise BusyError("The connection to Gemini failed", str(error) or type(error).__name__) from error
        except _transport_errors() as error:
            raise BusyError("The connection to Gemini failed", str(error) or type(error).__name__) from error

    async def close(self) -> None:
        for name in list(self._uploaded):
            await self._delete(name)
        await self._client.aio.aclose()
        self._reading.shutdown(wait=False, cancel_futures=True)

    def _fps_for(self, seconds: float) -> float:
        if self.fps is not None:
            return min(MOST_FPS, self.fps)
        return min(MOST_FPS, max(1.0, round(FRAMES / max(seconds, 0.1), 1)))

    def _timed(self, part: types.Part, ask: Ask) -> types.Part:
        from google.genai import types

        part.video_metadata = types.VideoMetadata(fps=self._fps_for(ask.seconds or 5.0))
        return part

    async def _asked(self, ask: Ask, part: types.Part) -> Answer:
        """Asks; an answer whose room was used up by thinking is asked for once more with twice the room."""

        from google.genai import types

        contents = types.Content(role="user", parts=[part, types.Part(text=ask.prompt)])
        spent_in = spent_out = 0
        for room in (1, 2):
            response = await self._client.aio.models.generate_content(
                model=self.model, contents=contents, config=self._config(ask, room)
            )
            usage = response.usage_metadata
            spent_in += (usage and usage.prompt_token_count) or 0
            spent_out += (
                ((usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)) if usage is not None else 0
            )
            ended = _ended(response)
            text = _text(response)
            if text or ended != "MAX_TOKENS":
                break
        dollars = self.price.of(spent_in, spent_out) if self.price else None
        _refuse_blocked(response, ended, self.model)
        if not text and ended == "MAX_TOKENS":
            raise BusyError(f"{self.model} thought for so long that no room was left for a caption")
        if not text and ended != "STOP":
            raise BusyError(f"{self.model} gave no caption", f"It ended with {ended or 'no reason'}.")
        return Answer(text.strip(), ended != "MAX_TOKENS", spent_in, spent_out, dollars)

    def _config(self, ask: Ask, room: int) -> types.GenerateContentConfig:
        from google.genai import types

        off = types.HarmBlockThreshold.OFF
        categories = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
        return types.GenerateContentConfig(
            system_instruction=ask.system or None,
            temperature=ask.temperature,
            max_output_tokens=(ask.max_tokens + _THINKING_TOKENS) * room,
            thinking_config=types.ThinkingConfig(thinking_level=types.ThinkingLevel.LOW),
            safety_settings=[
                types.SafetySetting(category=types.HarmCategory(f"HARM_CATEGORY_{each}"), threshold=off)
                for each in categories
            ],
        )

    async def _through_files(self, ask: Ask, content: bytes, mime_type: str) -> Answer:
        """By the Files API; the file is deleted whatever comes."""
        from google.genai import types

        await self._sweep()
        name = f"{_LABEL}{ask.path.name}"[:200]
        config = types.UploadFileConfig(mime_type=mime_type, display_name=name)
        file = await self._client.aio.files.upload(file=io.BytesIO(content), config=config)
        assert file.name is not None
        self._uploaded.add(file.name)
        try:
            deadline = asyncio.get_running_loop().time() + READY_SECONDS
            while file.state is types.FileState.PROCESSING:
                if asyncio.get_running_loop().time() > deadline:
                    raise BusyError(f"Google did not get {shown(ask.path.name)} ready in {READY_SECONDS:.0f} s")
                await asyncio.sleep(self.poll_seconds)
                file = await self._client.aio.files.get(name=file.name or "")
            if file.state is types.FileState.FAILED:
                why = file.error.message if file.error and file.error.message else "It did not say why."
                raise ItemError(f"Google cannot read {shown(ask.path.name)}", why)
            part = types.Part(file_data=types.FileData(file_uri=file.uri, mime_type=file.mime_type or mime_type))
            return await self._asked(ask, self._timed(part, ask))
        finally:
            await asyncio.shield(self._delete(file.name or ""))

    async def _delete(self, name: str) -> None:
        from google.genai import errors

        self._uploaded.discard(name)
        with contextlib.suppress(errors.APIError, OSError, *_transport_errors()):  # Google deletes it in two days
            await self._client.aio.files.delete(name=name)

    async def _sweep(self) -> None:
        """Deletes files that a killed run left with the service."""
        from google.genai import errors

        if self._is_swept:
            return
        self._is_swept = True
        with contextlib.suppress(errors.APIError, OSError, *_transport_errors()):
            async for file in await self._client.aio.files.list():
                if (file.display_name or "").startswith(_LABEL) and file.name and file.name not in self._uploaded:
                    await self._delete(file.name)


def _part(content: bytes, mime_type: str) -> types.Part:
    from google.genai import types

    return types.Part(inline_data=types.Blob(data=content, mime_type=mime_type))


def _clip(path: Path) -> tuple[bytes, str]:
    """A clip's bytes and type, in a container that the service takes. Raises ItemError."""
    mime_type = _TYPES.get(path.suffix.lower())
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ItemError(
                f"{shown(path.name)} is too large for Gemini", "It takes files of 2 GB at most.", "Cut or compress it."
            )
        if mime_type is not None:
            return path.read_bytes(), mime_type
    except OSError as error:
        raise ItemError(f"{shown(path.name)} cannot be read", f"{error.strerror}.") from error
    return _in_mp4(path), "video/mp4"


def _in_mp4(path: Path) -> bytes:
    """A clip's picture stream in an MP4 container, encoded anew only where MP4 does not hold its codec."""
    import av

    out = io.BytesIO()
    try:
        with av.open(str(path)) as source, av.open(out, "w", format="mp4") as target:
            stream = source.streams.video[0]
            if stream.codec_context.name in ("h264", "hevc", "av1", "mpeg4", "vp9"):
                made = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.stream = made
                        target.mux(packet)
            else:
                encoded = target.add_stream("libx264", rate=stream.average_rate or 24)
                encoded.width, encoded.height = stream.width // 2 * 2, stream.height // 2 * 2
                encoded.pix_fmt = "yuv420p"
                for frame in source.decode(stream):
                    target.mux(encoded.encode(frame.reformat(encoded.width, encoded.height, "yuv420p")))
                target.mux(encoded.encode(None))
    except (av.error.FFmpegError, IndexError) as error:
        raise ItemError(f"{shown(path.name)} cannot be read", str(error)) from error
    return out.getvalue()


def _ended(response: types.GenerateContentResponse) -> str:
    """Why the answer ended, as the service calls it; empty where it says nothing."""
    candidates = response.candidates or []
    reason = candidates[0].finish_reason if candidates else None
    return str(getattr(reason, "value", reason) or "")


def _text(response: types.GenerateContentResponse) -> str:
    """The answer's text without its thoughts."""
    candidates = response.candidates or []
    parts = candidates[0].content.parts if candidates and candidates[0].content else None
    return "".join(part.text or "" for part in parts or [] if not part.thought)


def _refuse_blocked(response: types.GenerateContentResponse, ended: str, model: str) -> None:
    """Raises DeclinedError where the service blocked the request or its answer."""
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        reason = getattr(feedback.block_reason, "value", feedback.block_reason)
        raise DeclinedError(f"{model} blocked the request", feedback.block_reason_message or str(reason))
    if ended in _BLOCKED:
        said = next((each.finish_message for each in response.candidates or []), None)
        raise DeclinedError(f"{model} blocked its answer", said or ended)


def _told_apart(error: Any, model: str, ask: Ask) -> LorapodError:
    """The error of ours that one of the client's is."""
    code, status = int(error.code or 0), str(error.status or "")
    said = " ".join(str(error.message or "").split())[:300]
    if code == 429:
        seconds, is_daily = _quota(error.details)
        if is_daily:
            return LorapodError(
                "Gemini's quota for today is used up",
                said,
                "It begins anew at midnight in California; the same command goes on then. Or use another model.",
            )
        return BusyError("Gemini is asked too much", said, seconds=seconds or _retry_after(error), slow_down=True)
    if code in (503, 529) or status == "UNAVAILABLE":
        return BusyError("Gemini is overloaded", said, seconds=_retry_after(error), slow_down=True)
    if code in (408, 499) or code >= 500:
        return BusyError("Gemini failed", said, seconds=_retry_after(error))
    if code in (400, 401, 403) and ("api key" in said.lower() or code == 401):
        return LorapodError("Gemini refuses the key", said, "Set GEMINI_API_KEY to a key of Google AI Studio.")
    if code == 403:
        return LorapodError(f"Gemini does not let this key use {model}", said, "Check the key's project.")
    if code == 404:
        return RequestError(
            f"Gemini does not know {model}", said, f"Name another with --model; {default_model()} is known."
        )
    if status == "FAILED_PRECONDITION":
        return LorapodError("Gemini cannot be used from here", said, "Set up billing, or take another captioner.")
    return ItemError(f"Gemini does not take {shown(ask.path.name)}", f"{said} (HTTP {code})")


def _quota(details: Any) -> tuple[float | None, bool]:
    """Seconds to wait, and whether it is the day's quota, from an error's details, whose form is not documented well."""
    body = details.get("error", details) if isinstance(details, dict) else {}
    seconds, is_daily = None, False
    for detail in body.get("details") or [] if isinstance(body, dict) else []:
        if not isinstance(detail, dict):
            continue
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and delay.endswith("s"):
            with contextlib.suppress(ValueError):
                seconds = float(delay[:-1])
        for violation in detail.get("violations") or []:
            is_daily = is_daily or "perday" in str(violation.get("quotaId", "")).casefold()
    return seconds, is_daily


def _retry_after(error: Any) -> float | None:
    from lorapod.captioning.openai import retry_after

    headers = getattr(getattr(error, "response", None), "headers", None)
    return retry_after(headers) if headers is not None else None


@cache
def _transport_errors() -> tuple[type[Exception], ...]:
    """What the HTTP library below the client raises: it is one of two, by what is installed."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with contextlib.suppress(ImportError):
            found.append(__import__(name).HTTPError)
    return tuple(found)
