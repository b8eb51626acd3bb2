"""Names of Z-Image's weights in single files: the transformer as its makers and ComfyUI name it, Qwen3 as transformers'
causal model names it.

The table is that of diffusers' single-file converter, walked from diffusers' name to the file's, so that a file is read in
place. A file that has diffusers' names is read by those.
"""

from __future__ import annotations

import re

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
        return Rows(f"{match[1]}.qkv.{match[3]}", (_FUSED[match[2]],), 3)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return Rows(name)


TRANSFORMER = Naming(_of_transformer, prefixes=("model.diffusion_model.", "diffusion_model."), unused=("norm_final.",))
TEXT_ENCODER = Naming(prefixes=("model.", "transformer.model."), unused=("lm_head.", "model.lm_head."))
