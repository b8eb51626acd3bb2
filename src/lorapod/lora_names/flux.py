"""FLUX.1's layers in the original checkpoint, which fuses what diffusers has apart, and Z-Image's, which does so too.

A fused layer is a row of diffusers' layers, whose outputs lie one below the other in its weight. The tables are those of
diffusers' conversion script for FLUX.1 and of its single-file loader for Z-Image. Not covered: `final_layer`'s
modulation, whose halves the two checkpoints have in another order, and the layers outside the blocks, which hardly any
LoRA adapts.
"""

from __future__ import annotations

import re

_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_Z_IMAGE = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
_BLOCK = re.compile(r"(double_blocks|single_blocks|transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")
_Z_IMAGE_BLOCK = re.compile(r"((?:layers|noise_refiner|context_refiner)\.\d+\.)(.+)")


def parts_of(module: str) -> tuple[str, ...]:
    """diffusers' layers that a layer of the original is made of, top to bottom; a name not known comes back alone."""
    if match := _BLOCK.fullmatch(module):
        table = {"double_blocks": _DOUBLE, "single_blocks": _SINGLE}.get(match[1], {})
        into = "transformer_blocks" if match[1] == "double_blocks" else "single_transformer_blocks"
        return tuple(f"{into}.{match[2]}.{part}" for part in table[match[3]]) if match[3] in table else (module,)
    match = _Z_IMAGE_BLOCK.fullmatch(module)
    return tuple(match[1] + part for part in _Z_IMAGE.get(match[2], (match[2],))) if match else (module,)


def fused_of(module: str) -> str | None:
    """The layer of FLUX.1's original that one of diffusers' is a part of; None for a name not known."""
    match = _BLOCK.fullmatch(module)
    if match is None or match[1] not in ("transformer_blocks", "single_transformer_blocks"):
        return None
    table, into = (_DOUBLE, "double_blocks") if match[1] == "transformer_blocks" else (_SINGLE, "single_blocks")
    found = next((name for name, parts in table.items() if match[3] in parts), None)
    return f"{into}.{match[2]}.{found}" if found else None


def rows_of(parts: tuple[str, ...], width: int, total: int | None = None) -> list[int]:
    """Rows that each part has of a fused layer.

    Args:
        width: Columns of the layer, which is the model's width.
        total: Rows of the layer, where they are known; FLUX.1's feed-forward layers are four times as wide as the model.
    """
    if len(parts) == 1:
        return [total] if total is not None else [width]
    rows = [4 * width if part.endswith("proj_mlp") else width for part in parts]
    if total is not None and sum(rows) != total:
        raise ValueError(f"{total} rows are not {' + '.join(map(str, rows))}")
    return rows
