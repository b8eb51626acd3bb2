"""Names of layers as sd-scripts and musubi-tuner write them: `lora_unet_`, then the module's name with underscores for
dots. SDXL's may be those of the original checkpoint (`input_blocks_4_1_…`), which are translated here too."""

from __future__ import annotations

import re

PREFIX = "lora_unet_"
ENCODERS = {"lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
"""Prefixes of layers of SDXL's text encoders, and diffusers' names of these."""

_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|single_transformer_blocks|transformer_blocks|to_qkv_mlp_proj|to_out|to_add_out|to_[qkv]"
    r"|add_[qkv]_proj|proj_in|proj_out|proj_mlp|time_emb_proj|ff_context|norm1_context|img_mlp|txt_mlp|img_mod|txt_mod"
    r"|conv_shortcut|conv_in|conv_out|linear_(?:[12]|in|out)"
    r"|input_blocks|output_blocks|middle_block|emb_layers|in_layers|out_layers|skip_connection"
    r"|double_blocks|single_blocks|img_attn|txt_attn|img_in|txt_in|final_layer|adaLN_modulation"
    r"|feed_forward|noise_refiner|context_refiner|self_attn|cross_attn|k_img|v_img|text_model|[qkv]_proj|out_proj"
    r"|[a-zA-Z0-9]+"
)
"""Parts of module names, those with an underscore of their own first."""

_ORIGINAL_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.([01])(?:\.(.+))?")
_ORIGINAL_MIDDLE = re.compile(r"middle_block\.([012])(?:\.(.+))?")
_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def kohya_name(module: str) -> str:
    """`down_blocks.1.attentions.0` to `lora_unet_down_blocks_1_attentions_0`, `text_encoder_2.…` to `lora_te2_…`."""
    for prefix, name in ENCODERS.items():
        if module.startswith(f"{name}."):
            return prefix + module.removeprefix(f"{name}.").replace(".", "_")
    return PREFIX + module.replace(".", "_")


def dotted(name: str) -> str:
    """`down_blocks_1_attentions_0` to `down_blocks.1.attentions.0`."""
    return ".".join(_WORDS.findall(name))


def module_of(name: str) -> str:
    """The inverse of `kohya_name`; of another layout the layers of text encoders are known, others come back as they are."""
    for prefix, encoder in ENCODERS.items():
        if name.startswith(prefix):
            return f"{encoder}.{in_text_model(dotted(name.removeprefix(prefix)))}"
        if name.startswith(f"{encoder}."):
            return f"{encoder}.{in_text_model(name.removeprefix(f'{encoder}.'))}"
    return from_original_unet(dotted(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else name


def in_text_model(module: str) -> str:
    """A layer of a CLIP text encoder by its name inside `text_model`.

    Trainers on transformers 5 write `encoder.layers…` where CLIPTextModel is the transformer itself; ComfyUI and older
    versions of diffusers know it as `text_model.encoder.layers…` alone.
    """
    return f"text_model.{module}" if module.startswith("encoder.layers.") else module


def from_original_unet(module: str) -> str:
    """diffusers' name of a layer of SDXL's U-Net by its name in the original checkpoint; others come back as they are.

    The original counts blocks in one row, three to a level: two (on the way up three) of the level's layers, then the
    resampling.
    """
    if match := _ORIGINAL_MIDDLE.fullmatch(module):
        place, rest = int(match[1]), match[2] or ""
        return f"mid_block.attentions.0.{rest}" if place == 1 else f"mid_block.resnets.{place // 2}.{_resnet(rest)}"
    match = _ORIGINAL_BLOCK.fullmatch(module)
    if match is None:
        return module
    number = int(match[2]) - (match[1] == "input_blocks")
    side = "down_blocks" if match[1] == "input_blocks" else "up_blocks"
    kind, rest = ("attentions", match[4] or "") if match[3] == "1" else ("resnets", _resnet(match[4] or ""))
    return f"{side}.{number // 3}.{kind}.{number % 3}.{rest}"


def _resnet(rest: str) -> str:
    return _RESNET.get(rest, rest)
