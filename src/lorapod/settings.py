"""Secrets: where they come from, and how they are kept out of what lorapod writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from lorapod.errors import RequestError

_SECRET_NAME = re.compile(r"(TOKEN|API_KEY|APIKEY|PASSWORD|SECRET|ACCESS_KEY)$", re.IGNORECASE)


@dataclass(frozen=True)
class Key:
    """A secret that lorapod can make use of.

    Attributes:
        name: The environment variable that all of lorapod reads.
        aliases: What other tools and templates call it.
        use: What it is for.
        page: Where a person gets one.
    """

    name: str
    aliases: tuple[str, ...]
    use: str
    page: str

    def is_set(self, environment: Mapping[str, str]) -> bool:
        return any(environment.get(name, "").strip() for name in (self.name, *self.aliases))


KEYS = (
    Key(
        "HF_TOKEN",
        ("HUGGING_FACE_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACE_HUB_TOKEN"),
        "base models behind a licence",
        "huggingface.co/settings/tokens",
    ),
    Key("CIVITAI_TOKEN", ("CIVITAI_API_KEY", "civitai_token"), "files from Civitai", "civitai.com/user/account"),
    Key("GEMINI_API_KEY", ("GOOGLE_API_KEY",), "captions of pictures and clips", "aistudio.google.com/apikey"),
    Key("OPENAI_API_KEY", (), "captions", "platform.openai.com/api-keys"),
)
"""Every key, in the order in which they are shown."""


def adopt_aliases(environment: MutableMapping[str, str]) -> list[str]:
    """Gives every key that is set under another name its own name too; those that have it keep it.

    Returns:
        The aliases that were taken.
    """
    taken = []
    for key in KEYS:
        if environment.get(key.name, "").strip():
            continue
        for alias in key.aliases:
            value = environment.get(alias, "").strip()
            if value:
                environment[key.name] = value
                taken.append(alias)
                break
    return taken


def secret_values(environment: dict[str, str] | None = None) -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    source = os.environ if environment is None else environment
    found = {value for name, value in source.items() if _SECRET_NAME.search(name) and len(value) >= 6}
    return sorted(found, key=len, reverse=True)


def mask_secrets(text: str, secrets: Iterable[str]) -> str:
    """`text` with every secret replaced by `***`."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def environment_of(workspace: Path) -> dict[str, str]:
    """The environment, over what the workspace's `.env` says (lines of NAME=VALUE, with or without quotes and `export`).

    Raises:
        RequestError: The file cannot be read, or others may read it.
    """
    file = workspace / ".env"
    try:
        is_open = bool(file.stat().st_mode & 0o077)
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return dict(os.environ)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{file} cannot be read", str(error), "Make it a text file of NAME=VALUE lines that you may read."
        ) from error
    if is_open:
        raise RequestError(
            f"Others may read the keys in {file}", "Its mode lets them.", f"Run `chmod 600 {file}`, then run again."
        )
    found: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            value = value.strip()
            is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
            found[name.strip()] = value[1:-1] if is_quoted else value
    return found | dict(os.environ)
