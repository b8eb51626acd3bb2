"""Names of Wan's layers: those of diffusers, which the engine trains, and those of the original checkpoint, which
ComfyUI and other trainers write (`diffusion_model.blocks.0.self_attn.q`, `lora_unet_blocks_0_self_attn_q`).

The table is the one of diffusers' conversion script for Wan; ComfyUI has no mapping of diffusers' names for this family.
Only the linear layers of the blocks are named, since nothing else gets an adapter.
"""

from __future__ import annotations

import re

_ORIGINAL = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_DIFFUSERS = {original: diffusers for diffusers, original in _ORIGINAL.items()}
_KOHYA = {original.replace(".", "_"): diffusers for original, diffusers in _DIFFUSERS.items()}
_IN_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")
_KOHYA_BLOCK = re.compile(r"lora_unet_blocks_(\d+)_(.+)")


def original_name(module: str) -> str:
    """The original checkpoint's name of a layer that diffusers calls `module`.

    Raises:
        KeyError: It is no linear layer of a block.
    """
    match = _IN_BLOCK.fullmatch(module)
    if match is None:
        raise KeyError(module)
    return match[1] + _ORIGINAL[match[2]]


def diffusers_name(name: str) -> str:
    """diffusers' name of a layer by any of its names; a name that is not known comes back as it is."""
    if match := _KOHYA_BLOCK.fullmatch(name):
        layer = _KOHYA.get(match[2])
        return f"blocks.{match[1]}.{layer}" if layer else name
    match = _IN_BLOCK.fullmatch(name)
    return match[1] + _DIFFUSERS.get(match[2], match[2]) if match else name
