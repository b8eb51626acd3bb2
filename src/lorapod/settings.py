"""Secrets: where they come from, and how they are kept out of what lorapod writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_SECRET_NAME = re.compile(r"(TOKEN|API_KEY|APIKEY|PASSWORD|SECRET|ACCESS_KEY)$", re.IGNORECASE)


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
