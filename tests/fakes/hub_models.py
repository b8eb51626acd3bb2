"""What the fake hub's repositories hold: small safetensors files, and an entry for them."""

from __future__ import annotations

import json
import os

from lorapod.models.catalogue import Entry


def safetensors(shapes: dict[str, list[int]], seed: int = 0) -> bytes:
    """A file of random bytes as F32 tensors of these shapes."""
    header, at, body = {}, 0, b""
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    body = (seed.to_bytes(4, "big") + os.urandom(at))[:at] if at else b""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(name: str = "toy", **changes: object) -> Entry:
    """An entry for the repository `maker/toy`: a diffusers folder of one component."""
    values: dict[str, object] = {
        "name": name,
        "title": "Toy",
        "family": "z_image",
        "modality": "picture",
        "licence": "Apache-2.0",
        "hub": "maker/toy",
        "files": [{"layout": "diffusers", "part": "all", "repo": "maker/toy", "include": ["*"]}],
        "trainers": {"builtin": {"needs": ["diffusers/*"]}},
    }
    return Entry.model_validate(values | changes)
