"""Captions by any OpenAI-compatible service: vLLM, Ollama, OpenRouter, llama.cpp, LM Studio, OpenAI itself.

Pictures go as JPEG data URLs after the text, as OpenRouter advises; clips as frames with their times, or as a `video_url`
for services that take one (vLLM, OpenRouter). Only chat completions are used, which all of them have. What a service does
not take (`max_tokens`, a temperature) it says by a 400 that names the parameter, and is then asked without.

Not covered: llama.cpp's `input_video`; whether a model can see at all is found out by its first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lorapod.captioning.base import Answer, Ask, BusyError, Cost, DeclinedError, ItemError, Kind
from lorapod.captioning.media import clip_jpegs, clip_url, data_url, picture_jpeg, scaled
from lorapod.captioning.registry import OPENAI_BASE_URL, Options, is_near
from lorapod.data.threads import cores
from lorapod.errors import LorapodError, RequestError

if TYPE_CHECKING:
    import openai

PICTURE_SIDE = 1024
FRAME_SIDE = 768
"""Pixels of the longer side that are sent."""

MOST_VIDEO_BYTES = 15_000_000
"""Base64 adds a third; services and proxies commonly stop at 20 MB."""

AT_ONCE = 16
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 180.0

_PIXELS_A_TOKEN = 28 * 28
"""Of Qwen2.5-VL (patches of 14, merged 2x2); Qwen3-VL takes 32x32, others fewer still. For estimates alone."""

_LETTERS_A_TOKEN = 4

_BLIND = (
    "not a multimodal model",
    "image input is not supported",
    "support image input",
    "image_url is only supported",
    "at most 0 image",
)
"""What services say of a model that cannot look at pictures (vLLM, llama.cpp, OpenRouter, OpenAI), lower case."""


def create(options: Options) -> OpenAICaptioner:
    """From the options and environment; the model is asked for where none is named and the service has but one.

    Raises:
        LorapodError: The service cannot be reached, or refuses the key.
        RequestError: The service has several models, and none is named.
    """
    environment = options.environment
    endpoint = (options.endpoint or environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL).rstrip("/")
    key = environment.get("OPENAI_API_KEY", "")
    if options.model:
        check_answers(endpoint, key)
    return OpenAICaptioner(
        endpoint,
        options.model or only_model(endpoint, key),
        key=key,
        price=options.price,
        frames=options.frames,
        clips_as_video=options.clips_as_video,
    )


def check_answers(endpoint: str, key: str) -> None:
    """Refuses a service that is not there, once and not for each item; what it answers does not matter here.

    Raises:
        LorapodError: There is no connection to it.
    """
    import openai

    with (
        openai.OpenAI(base_url=endpoint, api_key=key or "none", max_retries=1, timeout=CONNECT_SECONDS) as client,
        contextlib.suppress(openai.APIStatusError),
    ):
        try:
            client.get("/models", cast_to=object)
        except openai.APIConnectionError as error:
            raise _unreachable(endpoint, error) from error


def only_model(endpoint: str, key: str) -> str:
    """The model of a service that has one. Raises as `create`."""
    import openai

    client = openai.OpenAI(base_url=endpoint, api_key=key or "none", max_retries=1, timeout=CONNECT_SECONDS)
    try:
        models = [model.id for model in client.models.list()]
    except openai.APIStatusError as error:
        raise _fatal(error, endpoint, "") or LorapodError(
            f"{endpoint} does not say which models it has", _said(error), "Name one with --model."
        ) from error
    except openai.APIConnectionError as error:
        raise _unreachable(endpoint, error) from error
    finally:
        client.close()
    if len(models) != 1:
        some = ", ".join(models[:12]) + (f" and {len(models) - 12} more" if len(models) > 12 else "")
        raise RequestError(
            f"{endpoint} has {len(models) or 'no'} models, and none is named",
            f"It has {some}." if models else "",
            "Name one that can look at pictures with --model.",
        )
    return models[0]


class OpenAICaptioner:
    """One model of one service.

    Args:
        endpoint: Its address up to `/v1`.
        key: Empty for services without.
        price: Dollars a million tokens, in and out. What the service says itself (OpenRouter's `usage.cost`) counts more;
            a service on this machine or in its network costs nothing.
        frames: Of a clip, evenly from its first to its last.
        clips_as_video: Send clips as they are.
    """

    name = "openai"
    kinds: frozenset[Kind] = frozenset({"picture", "clip"})
    at_once = AT_ONCE

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        key: str = "",
        price: tuple[float, float] | None = None,
        frames: int = 8,
        clips_as_video: bool = False,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> None:
        import openai

        self.endpoint, self.model, self.frames, self.clips_as_video = endpoint, model, frames, clips_as_video
        if price is None and is_near(urlsplit(endpoint).hostname or ""):
            price = (0.0, 0.0)
        self.price = price
        self._client = openai.AsyncOpenAI(
            base_url=endpoint,
            api_key=key or "none",
            max_retries=0,
            timeout=openai.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        )
        self._decoding = ThreadPoolExecutor(max(2, cores()), thread_name_prefix="captions")
        self._left_out: set[str] = set()

    def estimate(self, ask: Ask) -> Cost:
        side = FRAME_SIDE if ask.kind == "clip" else PICTURE_SIDE
        width, height = scaled((ask.width or side, ask.height or side), side)
        pictures = self.frames if ask.kind == "clip" else 1
        seen = pictures * width * height // _PIXELS_A_TOKEN
        tokens = seen + (len(ask.system) + len(ask.prompt)) // _LETTERS_A_TOKEN
        written = ask.max_tokens // 2
        return Cost(tokens, written, self._dollars(tokens, written))

    async def caption(self, ask: Ask) -> Answer:
        import openai

        content = await asyncio.get_running_loop().run_in_executor(self._decoding, self._content, ask)
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if ask.system:
            messages.insert(0, {"role": "system", "content": ask.system})
        while True:
            try:
                # The typed method walks every part of the body first, which takes longer than all else here.
                body = {"model": self.model, "messages": messages, **self._parameters(ask)}
                return self._answer(await self._client.post("/chat/completions", cast_to=object, body=body))
            except (openai.OpenAIError, json.JSONDecodeError) as error:
                if not self._leaves_out(error):
                    raise self._told_apart(error, ask) from error

    async def close(self) -> None:
        await self._client.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)

    def _content(self, ask: Ask) -> list[dict[str, Any]]:
        if ask.kind == "picture":
            return [{"type": "text", "text": ask.prompt}, _picture(picture_jpeg(ask, PICTURE_SIDE))]
        if self.clips_as_video:
            video = {"type": "video_url", "video_url": {"url": clip_url(ask.path, MOST_VIDEO_BYTES)}}
            return [{"type": "text", "text": ask.prompt}, video]
        frames = clip_jpegs(ask, self.frames, FRAME_SIDE)
        times = ", ".join(f"{time:.1f}" for time, _ in frames)
        told = f"These {len(frames)} pictures are frames of one clip, in order, at {times} seconds. "
        told += "Describe the clip as a whole.\n"
        return [{"type": "text", "text": told + ask.prompt}, *(_picture(jpeg) for _, jpeg in frames)]

    def _parameters(self, ask: Ask) -> dict[str, Any]:
        length = "max_completion_tokens" if "max_tokens" in self._left_out else "max_tokens"
        wanted = {length: ask.max_tokens, "temperature": ask.temperature}
        return {name: value for name, value in wanted.items() if name not in self._left_out}

    def _leaves_out(self, error: Exception) -> bool:
        """Whether the request can be sent anew without what the service did not take of it."""
        import openai

        if not isinstance(error, openai.BadRequestError) or error.param not in ("max_tokens", "temperature"):
            return False
        if error.param in self._left_out:
            return False
        self._left_out.add(error.param)
        return True

    def _answer(self, completion: Any) -> Answer:
        choices = _field(completion, "choices")
        if not isinstance(choices, list) or not choices:
            failure = _field(completion, "error")
            code = _field(failure, "code")
            raise BusyError(
                f"{self.endpoint} gave no answer",
                str(_field(failure, "message") or "Its reply held no choices."),
                slow_down=code in (429, 502, 503),
            )
        choice, usage = choices[0], _field(completion, "usage")
        message, ended = _field(choice, "message"), _field(choice, "finish_reason")
        refusal = _field(message, "refusal")
        if ended == "content_filter" or refusal:
            raise DeclinedError(f"{self.model} declined", str(refusal or "its content filter"))
        if ended == "error":  # OpenRouter, where a provider failed half-way
            raise BusyError(f"{self.endpoint} broke off its answer", str(_field(choice, "error") or ""))
        text, is_whole = without_thoughts(str(_field(message, "content") or ""))
        into, out = int(_field(usage, "prompt_tokens") or 0), int(_field(usage, "completion_tokens") or 0)
        told = _field(usage, "cost")
        dollars = float(told) if isinstance(told, int | float) else None
        if dollars is None and (usage is not None or self.price == (0.0, 0.0)):
            dollars = self._dollars(into, out)
        return Answer(text, is_whole and ended != "length", into, out, dollars)

    def _dollars(self, into: int, out: int) -> float | None:
        return None if self.price is None else (into * self.price[0] + out * self.price[1]) / 1e6

    def _told_apart(self, error: Exception, ask: Ask) -> LorapodError:
        """The error of ours that one of the client is."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            return BusyError(f"{self.endpoint} took too long to answer")
        if isinstance(error, openai.APIConnectionError):
            return BusyError(f"The connection to {self.endpoint} failed", str(error.__cause__ or error))
        if isinstance(error, openai.APIStatusError):
            return _of_status(error, self.endpoint, self.model, ask)
        return BusyError(f"{self.endpoint} gave an answer that cannot be read", str(error))


def without_thoughts(text: str) -> tuple[str, bool]:
    """The text after a model's thoughts, and whether the thoughts came to an end."""
    before, end, after = text.rpartition("</think>")
    if end:
        return after.strip(), True
    if after.lstrip().startswith("<think>"):
        return "", False
    return (before + after).strip(), True


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply's headers ask to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date."""
    for name, a_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / a_second)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            continue
    return None


def _of_status(error: openai.APIStatusError, endpoint: str, model: str, ask: Ask) -> LorapodError:
    status, said = error.status_code, _said(error)
    code = str(error.code or "")
    if _is_moderation(error):
        return DeclinedError(f"{model} declined", said)
    if fatal := _fatal(error, endpoint, model):
        return fatal
    if status in (429, 503, 529):
        what = "is asked too much" if status == 429 else "is overloaded or not ready"
        return BusyError(f"{endpoint} {what}", said, seconds=retry_after(error.response.headers), slow_down=True)
    if status in (408, 409, 425) or status >= 500:
        return BusyError(f"{endpoint} failed", said, seconds=retry_after(error.response.headers))
    return ItemError(f"{endpoint} does not take {ask.path.name}", f"{said or code} (HTTP {status})")


def _fatal(error: openai.APIStatusError, endpoint: str, model: str) -> LorapodError | None:
    """What no other item would fare better with; None where another may."""
    status, said, code = error.status_code, _said(error), str(error.code or "")
    if any(words in said.lower() for words in _BLIND):
        return RequestError(
            f"{model} cannot look at pictures",
            said,
            "Name a model with vision with --model (for llama.cpp, add --mmproj).",
        )
    if status == 401:
        return LorapodError(f"{endpoint} refuses the key", said, "Set OPENAI_API_KEY to a key of this service.")
    if status == 402 or code == "insufficient_quota":
        return LorapodError(f"{endpoint} wants money", said, "Top up the account, then run the same command again.")
    if status == 403:
        return LorapodError(f"{endpoint} does not let this key use {model or 'it'}", said, "Check the key's rights.")
    if status == 404:
        what = f"{endpoint} does not know {model}" if model else f"There is no OpenAI-compatible service at {endpoint}"
        return RequestError(what, said, "Check --model and --endpoint; the address usually ends in /v1.")
    return None


def _is_moderation(error: openai.APIStatusError) -> bool:
    """Whether the item itself was refused: OpenAI's and Azure's codes, OpenRouter's 403 with `metadata.reasons`."""
    if str(error.code or "") in ("content_filter", "content_policy_violation", "moderation_blocked"):
        return True
    body = error.body if isinstance(error.body, dict) else {}
    return bool(_field(_field(body, "metadata"), "reasons"))


def _said(error: openai.APIStatusError) -> str:
    """The service's own words."""
    body: Any = error.body
    message = _field(body, "message") or _field(_field(body, "error"), "message") or _field(body, "detail")
    text = str(message or (body if isinstance(body, str) else "") or f"HTTP {error.status_code}")
    return " ".join(text.split())[:300]


def _unreachable(endpoint: str, error: Exception) -> LorapodError:
    return LorapodError(
        f"{endpoint} cannot be reached", str(error.__cause__ or error), "Start the service, or check --endpoint."
    )


def _picture(jpeg: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(jpeg)}}


def _field(thing: object, name: str) -> Any:
    """A field of a JSON object; None where there is none, or it is no object."""
    return thing.get(name) if isinstance(thing, dict) else None
