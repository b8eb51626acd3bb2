"""Captioners by name, imported when they are used; and which one is used where none is named.

A package adds its own as an entry point of the group `lorapod.captioners`: a callable that takes `Options` and gives a
`Captioner`. What comes with lorapod cannot be replaced by one of the same name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from lorapod.captioning.base import Captioner, Kind
from lorapod.errors import MissingPackageError, RequestError
from lorapod.machine import find_gpus

GROUP = "lorapod.captioners"

OPENAI_BASE_URL = "https://api.openai.com/v1"

_JOYCAPTION_GB = 8.0
"""What JoyCaption takes at 4 bits (its Gradio application's README)."""


@dataclass(frozen=True)
class Options:
    """What a captioner is made from; each takes what concerns it.

    Attributes:
        model: As the person named it; empty for the captioner's own choice.
        endpoint: Address of an OpenAI-compatible service; empty for that of the environment.
        pattern: Of the template; empty for its own.
        trigger, class_word: For the template.
        price: Dollars a million tokens, in and out; None where it is not known.
        frames: Of a clip, where it is shown as pictures.
        clips_as_video: Clips are sent as they are.
        models: Where models of captioners are kept; None for nowhere.
        batch: Pictures that a local model takes at a time; 0 for as many as fit.
        heard: Told bytes and bytes in all while a model is fetched, from any thread; what it raises ends that. None for
            bars on the terminal.
        environment: Environment variables, over those of the workspace's `.env`.
    """

    model: str = ""
    endpoint: str = ""
    pattern: str = ""
    trigger: str = ""
    class_word: str = ""
    price: tuple[float, float] | None = None
    frames: int = 8
    clips_as_video: bool = False
    models: Path | None = None
    batch: int = 0
    heard: Callable[[float, float], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


Factory = Callable[[Options], Captioner]


@dataclass(frozen=True)
class Known:
    """A captioner that comes with lorapod.

    Attributes:
        factory: module:function.
        what: One line about it.
        packages: What it needs, by import name.
        extra: The extra of lorapod that installs them.
    """

    factory: str
    what: str
    packages: tuple[str, ...] = ()
    extra: str = ""


_LOCAL = ("torch", "transformers")

KNOWN: dict[str, Known] = {
    "joycaption": Known("lorapod.captioning.joycaption:create", "JoyCaption on this GPU; pictures.", _LOCAL, "engine"),
    "gemini": Known(
        "lorapod.captioning.gemini:create", "Google's Gemini; clips and pictures.", ("google.genai",), "captions"
    ),
    "openai": Known("lorapod.captioning.openai:create", "Any OpenAI-compatible service.", ("openai",), "captions"),
    "qwen-vl": Known("lorapod.captioning.qwen_vl:create", "Qwen3-VL on this GPU; both.", _LOCAL, "engine"),
    "tagger": Known("lorapod.captioning.tagger:create", "Tags of a WD14 model; pictures.", ("onnxruntime",), "tagger"),
    "template": Known("lorapod.captioning.template:create", "No model: trigger word, class word, facts of the file."),
}


@dataclass(frozen=True)
class Chosen:
    """A captioner, and why it is the one."""

    name: str
    why: str


def names() -> list[str]:
    """Of all captioners that can be named here."""
    return [name for name, known in KNOWN.items() if _is_here(known.factory)] + sorted(_added())


def choose(named: str, kinds: frozenset[Kind], options: Options, *, gpu_gb: float | None = None) -> Chosen:
    """The captioner that is named, else the best of what is at hand for such items.

    Args:
        kinds: Of the items that are to be captioned.
        gpu_gb: Memory of the largest GPU; None to find out.

    Raises:
        RequestError: There is no captioner of that name, or none is at hand.
    """
    if named:
        if named not in names():
            raise RequestError(f"There is no captioner {named!r}", "", f"Choose one of {', '.join(names())}.")
        return Chosen(named, "as asked for")
    environment = options.environment
    if options.endpoint or environment.get("OPENAI_BASE_URL"):
        return Chosen("openai", f"the endpoint is {options.endpoint or environment['OPENAI_BASE_URL']}")
    gemini = next((key for key in ("GOOGLE_API_KEY", "GEMINI_API_KEY") if environment.get(key)), None)
    gemini = gemini if "gemini" in names() else None
    if gemini and "clip" in kinds:
        return Chosen("gemini", f"there are clips, and {gemini} is set")
    memory = largest_gpu_gb() if gpu_gb is None else gpu_gb
    local = "qwen-vl" if "clip" in kinds else "joycaption"
    if memory >= _JOYCAPTION_GB and local in names() and not _missing(KNOWN[local]):
        return Chosen(local, f"the GPU has {memory:.0f} GB")
    if gemini:
        return Chosen("gemini", f"{gemini} is set")
    if environment.get("OPENAI_API_KEY"):
        return Chosen("openai", "OPENAI_API_KEY is set")
    found = f"a GPU with {memory:.0f} GB" if memory else "no GPU"
    raise RequestError(
        "No captioner is at hand",
        f"Found were {found}, and neither GEMINI_API_KEY nor OPENAI_API_KEY in the environment or the workspace's .env.",
        "Set a key, give the --endpoint of a service such as Ollama or vLLM, or take --captioner template.",
    )


def create(name: str, options: Options) -> Captioner:
    """The captioner of that name.

    Raises:
        MissingPackageError: A package that it needs is not installed.
        RequestError: There is none of that name, or the options don't suit it.
    """
    known = KNOWN.get(name)
    if known is not None:
        missing = _missing(known)
        if missing:
            raise MissingPackageError(
                f"The captioner {name} needs the package {missing}",
                "It is not installed.",
                f"Install it with: pip install 'lorapod[{known.extra}]'",
            )
        module, attribute = known.factory.split(":")
        return cast(Factory, getattr(import_module(module), attribute))(options)
    added = _added().get(name)
    if added is None:
        raise RequestError(f"There is no captioner {name!r}", "", f"Choose one of {', '.join(names())}.")
    try:
        factory = cast(Factory, added.load())
    except (ImportError, AttributeError) as error:
        raise RequestError(
            f"The captioner {name} cannot be loaded", f"{added.value}: {error}.", "Update the package that brings it."
        ) from error
    return factory(options)


def sends_to(name: str, options: Options) -> str | None:
    """Who gets to see the items; None where they stay on this machine or in its network."""
    if name == "gemini":
        return "Google"
    if name in KNOWN and name != "openai":
        return None
    if name != "openai":
        return f"whoever the captioner {name} asks"
    host = urlsplit(options.endpoint or options.environment.get("OPENAI_BASE_URL") or OPENAI_BASE_URL).hostname or ""
    return None if is_near(host) else host


def is_near(host: str) -> bool:
    """Whether a host is this machine or one of its own network, by its name or address alone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_private or address.is_loopback


def largest_gpu_gb() -> float:
    """Memory of the largest GPU in GB (2^30 bytes); 0 where there is none, or it does not tell."""
    largest = find_gpus().largest
    return (largest.memory_total or 0) / (1 << 30) if largest else 0.0


def lacks(name: str, environment: Mapping[str, str], gpu_gb: float) -> list[str]:
    """What a captioner that comes with lorapod needs and does not find, in words; [] where it can be used."""
    known = KNOWN[name]
    if not _is_here(known.factory):
        return ["a later version of lorapod"]
    wants = [f"the package {package}" for package in [_missing(known)] if package]
    if name == "gemini" and not any(environment.get(key) for key in ("GOOGLE_API_KEY", "GEMINI_API_KEY")):
        wants.append("GEMINI_API_KEY")
    if name == "openai" and not any(environment.get(key) for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL")):
        wants.append("OPENAI_API_KEY or OPENAI_BASE_URL")
    if known.packages == _LOCAL and gpu_gb < _JOYCAPTION_GB:
        wants.append(f"a GPU with {_JOYCAPTION_GB:.0f} GB")
    elif name == "joycaption" and not wants:
        from lorapod.captioning.joycaption import BF16_GB

        wants += ["the package bitsandbytes"] if gpu_gb < BF16_GB and find_spec("bitsandbytes") is None else []
    return wants


def _added() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in KNOWN}


def _is_here(factory: str) -> bool:
    return find_spec(factory.split(":")[0]) is not None


def _missing(known: Known) -> str | None:
    for package in known.packages:
        try:
            if find_spec(package) is None:
                return package
        except ModuleNotFoundError:  # of `google.genai` where there is no `google`
            return package
    return None
