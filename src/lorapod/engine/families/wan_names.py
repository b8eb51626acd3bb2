"""Names of Wan's weights in single files: the transformer and both VAEs as their makers and ComfyUI name them.

The linear layers of blocks are those of `lorapod.lora_names.wan`; the rest is in diffusers' single-file converter, and for
the VAE of Wan 2.2, which that does not know, in diffusers' conversion script. Files with diffusers' names are read by those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorapod.engine.weights import Naming, Rows
from lorapod.lora_names import wan

_AROUND = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
}
_IN_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")
_IN_BLOCK_NAMES = {
    "norm2": "norm3",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
}


def _of_transformer(name: str) -> Rows:
    if name.endswith("scale_shift_table"):
        block = name.removesuffix("scale_shift_table")
        return Rows(f"{block or 'head.'}modulation")
    module, _, end = name.rpartition(".")
    if match := _IN_BLOCK.fullmatch(module):
        if match[2] in _IN_BLOCK_NAMES:
            return Rows(f"{match[1]}{_IN_BLOCK_NAMES[match[2]]}.{end}")
        return Rows(f"{wan.original_name(module)}.{end}")
    return Rows(f"{_AROUND.get(module, module)}.{end}")


TRANSFORMER = Naming(_of_transformer, prefixes=("model.diffusion_model.", "diffusion_model."))
TEXT_ENCODER = Naming(unused=("spiece_model",))
"""UMT5, by transformers' names; ComfyUI's file has its tokenizer inside."""
IMAGE_ENCODER = Naming(prefixes=("vision_model.",))

_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_TOP = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
}
_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:(?:resnets|(upsamplers))\.(\d+)|(down|up)sampler)\.(.+)")


def vae(config: Mapping[str, Any]) -> Naming:
    """Names of the weights of a VAE of that configuration: Wan 2.1's, or Wan 2.2's with its residual levels."""
    deep: int = config["num_res_blocks"]
    nested = bool(config.get("is_residual"))

    def layer(half: str, rest: str) -> str:
        """The original's name of a module in one half of the VAE."""
        if match := _LAYER.fullmatch(rest):
            way, level, upsamplers, index, sampler, inner = match.groups()
            # A level's resampling comes after its layers, of which the way up has one more.
            number = deep + (way == "up") if upsamplers or sampler else int(index)
            stem = f"{half}.{way}samples"
            place = f"{level}.{way}samples.{number}" if nested else str(int(level) * (deep + 2) + number)
            return f"{stem}.{place}.{_in_layer(inner)}"
        if match := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest):  # Wan 2.1's way down is one row in both
            return f"{half}.downsamples.{match[1]}.{_in_layer(match[2])}"
        for ours, theirs in _TOP.items():
            if rest == ours or rest.startswith(f"{ours}."):
                inner = rest[len(ours) + 1 :]
                return f"{half}.{theirs}" + (f".{_in_layer(inner)}" if inner else "")
        return f"{half}.{rest}"

    def of(name: str) -> Rows:
        module, _, end = name.rpartition(".")
        half, _, rest = module.partition(".")
        if half in ("encoder", "decoder"):
            return Rows(f"{layer(half, rest)}.{end}")
        return Rows(f"{_TOP.get(module, module)}.{end}")

    return Naming(of)


def _in_layer(name: str) -> str:
    return "shortcut" if name == "conv_shortcut" else _RESIDUAL.get(name, name)
