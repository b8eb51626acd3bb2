"""Names of Z-Image's weights in single files: the transformer as its makers and ComfyUI name it, Qwen3 as transformers'
causal model names it, and the VAE as the latent-diffusion code does.

The tables are those of diffusers' single-file converters; they are walked from diffusers' name to the file's, so that a
file is read in place. A file that has diffusers' names is read by those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorapod.engine.weights import Naming, Rows

_FUSED = {"to_q": 0, "to_k": 1, "to_v": 2}
_FUSED_NAME = re.compile(r"(.+\.attention)\.(to_q|to_k|to_v)\.(weight|bias)")
_RENAMED = (
    (re.compile(r"^all_(x_embedder|final_layer)\.\d+-\d+\."), r"\1."),
    (re.compile(r"\.attention\.to_out\.0\."), ".attention.out."),
    (re.compile(r"\.attention\.norm_([qk])\."), r".attention.\1_norm."),
)


def _of_transformer(name: str) -> Rows:
    if match := _FUSED_NAME.fullmatch(name):
        return Rows(f"{match[1]}.qkv.{match[3]}", _FUSED[match[2]], 3)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return Rows(name)


TRANSFORMER = Naming(_of_transformer, prefixes=("model.diffusion_model.", "diffusion_model."), unused=("norm_final.",))
TEXT_ENCODER = Naming(prefixes=("model.", "transformer.model."), unused=("lm_head.", "model.lm_head."))

_IN_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_RESNET = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)")
_SAMPLER = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def vae(config: Mapping[str, Any]) -> Naming:
    """Names of the weights of a VAE of that configuration."""
    levels = len(config["block_out_channels"])

    def level(way: str, index: str) -> int:
        return int(index) if way == "down" else levels - 1 - int(index)  # up blocks are counted from the other end

    def of(name: str) -> Rows:
        if match := _RESNET.fullmatch(name):
            half, way, block, resnet, rest = match.groups()
            rest = rest.replace("conv_shortcut", "nin_shortcut")
            return Rows(f"{half}.{way}.{level(way, block)}.block.{resnet}.{rest}")
        if match := _SAMPLER.fullmatch(name):
            half, way, block, rest = match.groups()
            return Rows(f"{half}.{way}.{level(way, block)}.{way}sample.{rest}")
        if match := _MIDDLE.fullmatch(name):
            half, kind, index, rest = match.groups()
            if kind == "resnets":
                return Rows(f"{half}.mid.block_{int(index) + 1}.{rest}")
            layer, _, end = rest.rpartition(".")
            return Rows(f"{half}.mid.attn_{int(index) + 1}.{_IN_ATTENTION.get(layer, layer)}.{end}")
        return Rows(name.replace("conv_norm_out", "norm_out"))

    return Naming(of, prefixes=("first_stage_model.", "vae."), unused=("loss.", "model_ema."))
