"""Names of layers as sd-scripts and musubi-tuner write them: `lora_unet_`, then the module's name with underscores for
dots."""

from __future__ import annotations

import re

PREFIX = "lora_unet_"

_WORDS = re.compile(
    r"down_blocks|up_blocks|mid_block|single_transformer_blocks|transformer_blocks|to_out|to_add_out|to_[qkv]"
    r"|add_[qkv]_proj|proj_in|proj_out|proj_mlp|time_emb_proj|ff_context|norm1_context|img_mlp|txt_mlp|img_mod|txt_mod"
    r"|conv_shortcut|conv_in|conv_out|linear_[12]|[a-zA-Z0-9]+"
)
"""Parts of diffusers' module names, those with an underscore of their own first."""


def kohya_name(module: str) -> str:
    """`down_blocks.1.attentions.0` to `lora_unet_down_blocks_1_attentions_0`."""
    return PREFIX + module.replace(".", "_")


def module_of(name: str) -> str:
    """The inverse of `kohya_name`; a name of another layout comes back as it is."""
    if not name.startswith(PREFIX):
        return name
    return ".".join(_WORDS.findall(name.removeprefix(PREFIX)))
