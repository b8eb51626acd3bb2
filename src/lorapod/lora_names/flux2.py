"""FLUX.2's layers in the original checkpoint, which fuses the queries, keys and values that diffusers has apart.

The tables are those of diffusers' single-file converter. Not covered: the layers outside the blocks.
"""

from __future__ import annotations

import re

_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE: dict[str, tuple[str, ...]] = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_TABLES: dict[str, tuple[dict[str, tuple[str, ...]], str]] = {
    "double_blocks": (_DOUBLE, "transformer_blocks"),
    "single_blocks": (_SINGLE, "single_transformer_blocks"),
}
_BLOCK = re.compile(r"(double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")


def parts_of(module: str) -> tuple[str, ...]:
    """diffusers' layers that a layer of the original is made of, top to bottom, all of the same height; a name not known
    comes back alone."""
    match = _BLOCK.fullmatch(module)
    if match is None or match[1] not in _TABLES or match[3] not in _TABLES[match[1]][0]:
        return (module,)
    table, into = _TABLES[match[1]]
    return tuple(f"{into}.{match[2]}.{part}" for part in table[match[3]])


def fused_of(module: str) -> str | None:
    """The layer of the original that one of diffusers' is a part of; None for a name not known."""
    if match := _BLOCK.fullmatch(module):
        for original, (table, into) in _TABLES.items():
            if match[1] == into:
                found = next((name for name, parts in table.items() if match[3] in parts), None)
                return f"{original}.{match[2]}.{found}" if found else None
    return None


def rows_of(parts: tuple[str, ...], width: int, total: int | None = None) -> list[int]:
    """Rows that each part has of a fused layer.

    Args:
        width: Columns of the layer, which is the model's width.
        total: Rows of the layer, where they are known.
    """
    if len(parts) == 1:
        return [total] if total is not None else [width]
    if total is not None and total != width * len(parts):
        raise ValueError(f"{total} rows are not {' + '.join([str(width)] * len(parts))}")
    return [width] * len(parts)
