"""The cache of latents and text embeddings: one safetensors file an entry, named by what it was made from.

A key holds everything that the entry depends on (file bytes, geometry, caption, model), so an entry is never stale: what
changes gets another key, and only that is computed anew. Entries appear whole or not at all, so a cache survives being
killed and is shared between runs. Nothing is ever deleted here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from lorapod.engine.families import Conditions
from lorapod.engine.storage import save_tensors
from lorapod.files import is_whole_safetensors, written_whole

VERSION = 1
"""Raised when the meaning of an entry changes."""

HELD_BYTES = 512 * 2**20
"""What a cache keeps in memory of the entries read. Full is full: epochs go round, so dropping the oldest entry would
always drop the one that is needed next."""


class Cache:
    """A folder of entries of one kind.

    Args:
        folder: Where entries are kept.
        model: Fingerprint of the model that makes them.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self._held: dict[str, Conditions] = {}
        self._room = HELD_BYTES

    def key(self, **made_from: object) -> str:
        """Name of the entry made from these JSON values by the cache's model."""
        text = json.dumps([VERSION, self.model, made_from], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is an entry that is whole; a damaged one is computed again."""
        return is_whole_safetensors(self.path(key))

    def put(self, key: str, entry: Conditions) -> None:
        """Keeps an entry.

        Raises:
            DiskError: No space, or the folder cannot be written.
        """
        with written_whole(self.path(key)) as temporary:
            save_tensors(entry, temporary)

    def get(self, key: str) -> Conditions | None:
        """The entry, not to be changed in place, or None where there is none that can be read."""
        if key in self._held:
            return self._held[key]
        try:
            entry = load_file(self.path(key))
        except (FileNotFoundError, SafetensorError):
            return None
        size = sum(tensor.nbytes for tensor in entry.values())
        if size <= self._room:
            self._held[key] = entry
            self._room -= size
        return entry
