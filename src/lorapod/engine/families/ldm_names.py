"""Names of weights in single files as the latent-diffusion code has them: the VAE of pictures, and the parts of an SDXL
checkpoint. The tables are those of diffusers' single-file converters, walked from diffusers' name to the file's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorapod.engine.weights import Naming, Rows

_IN_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_RESNET = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)")
_VAE_SAMPLER = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def vae(config: Mapping[str, Any]) -> Naming:
    """Names of the weights of a VAE of that configuration."""
    levels = len(config["block_out_channels"])

    def level(way: str, index: str) -> int:
        return int(index) if way == "down" else levels - 1 - int(index)  # up blocks are counted from the other end

    def of(name: str) -> Rows:
        if match := _VAE_RESNET.fullmatch(name):
            half, way, block, resnet, rest = match.groups()
            rest = rest.replace("conv_shortcut", "nin_shortcut")
            return Rows(f"{half}.{way}.{level(way, block)}.block.{resnet}.{rest}")
        if match := _VAE_SAMPLER.fullmatch(name):
            half, way, block, rest = match.groups()
            return Rows(f"{half}.{way}.{level(way, block)}.{way}sample.{rest}")
        if match := _VAE_MIDDLE.fullmatch(name):
            half, kind, index, rest = match.groups()
            if kind == "resnets":
                return Rows(f"{half}.mid.block_{int(index) + 1}.{rest}")
            layer, _, end = rest.rpartition(".")
            return Rows(f"{half}.mid.attn_{int(index) + 1}.{_IN_ATTENTION.get(layer, layer)}.{end}")
        return Rows(name.replace("conv_norm_out", "norm_out"))

    return Naming(of, prefixes=("first_stage_model.", "vae."), unused=("loss.", "model_ema."))


_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MID = re.compile(r"mid_block\.((?:resnets|attentions)\.\d)\.(.+)")


def unet(config: Mapping[str, Any]) -> Naming:
    """Names of the weights of SDXL's U-Net: blocks are counted in one row, a level's layers and then its resampling."""
    layers: int = config["layers_per_block"]
    with_attention = ["CrossAttn" in kind for kind in config["up_block_types"]]

    def of(name: str) -> Rows:
        module, _, end = name.rpartition(".")
        if module in _UNET_TOP:
            return Rows(f"{_UNET_TOP[module]}.{end}")
        if match := _UNET_MID.fullmatch(module):
            return Rows(f"middle_block.{_UNET_MIDDLE[match[1]]}.{_UNET_RESNET.get(match[2], match[2])}.{end}")
        match = _UNET_BLOCK.fullmatch(module)
        if match is None:
            return Rows(name)
        way, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        row = level * (layers + 1) + 1 if way == "down" else level * (layers + 1)
        side = "input_blocks" if way == "down" else "output_blocks"
        if kind == "downsamplers":
            return Rows(f"{side}.{row + layers}.0.op.{end}")
        if kind == "upsamplers":
            return Rows(f"{side}.{row + layers}.{2 if with_attention[level] else 1}.conv.{end}")
        place = f"{side}.{row + index}.{'0' if kind == 'resnets' else '1'}"
        return Rows(f"{place}.{_UNET_RESNET.get(rest, rest) if kind == 'resnets' else rest}.{end}")

    return Naming(of, prefixes=("model.diffusion_model.", "diffusion_model."))


_OF_CLIP = ("text_projection", "logit_scale")
CLIP_L = Naming(
    prefixes=("text_model.", "conditioner.embedders.0.transformer.text_model.", "clip_l.transformer.text_model."),
    unused=_OF_CLIP,
)
"""CLIP-L, as transformers, an SDXL checkpoint and ComfyUI name it."""

_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_FUSED = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def _of_open_clip(name: str) -> Rows:
    if name == "text_projection.weight":
        return Rows("text_projection", transposed=True)
    if match := _OPEN_CLIP_LAYER.fullmatch(name):
        block = f"transformer.resblocks.{match[1]}"
        if match[2] in _FUSED:
            return Rows(f"{block}.attn.in_proj_{match[3]}", (_FUSED[match[2]],), 3)
        return Rows(f"{block}.{_IN_OPEN_CLIP_LAYER.get(match[2], match[2])}.{match[3]}")
    return Rows(_OPEN_CLIP.get(name, name))


OPEN_CLIP = Naming(_of_open_clip, prefixes=("conditioner.embedders.1.model.",), unused=("logit_scale",))
"""OpenCLIP-bigG in an SDXL checkpoint."""
