"""Names of FLUX.1's weights in single files: the transformer as its makers and ComfyUI name it, with fused layers.

The layers inside blocks are those of `lorapod.lora_names.flux`; what lies around them is in diffusers' single-file
converter. A file that has diffusers' names is read by those.
"""

from __future__ import annotations

import re

from lorapod.engine.weights import Naming, Rows
from lorapod.lora_names import flux

_AROUND = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
}
_NORM = re.compile(r"(single_)?transformer_blocks\.(\d+)\.attn\.norm_(added_)?([qk])\.weight")
_HALVES_SWAPPED = {"norm_out.linear": "final_layer.adaLN_modulation.1"}
"""The makers' modulation has shift, then scale; diffusers' scale, then shift."""


def _of(name: str) -> Rows:
    module, _, end = name.rpartition(".")
    if module in _HALVES_SWAPPED:
        return Rows(f"{_HALVES_SWAPPED[module]}.{end}", (1, 0), 2)
    if match := _NORM.fullmatch(name):
        single, block, added, which = match.groups()
        kind = {"q": "query", "k": "key"}[which]
        stream = "" if single else f"{'txt' if added else 'img'}_attn."
        return Rows(f"{'single' if single else 'double'}_blocks.{block}.{stream}norm.{kind}_norm.scale")
    if whole := flux.fused_of(module):
        parts = flux.parts_of(whole)
        heights = flux.rows_of(parts, 1)
        first = sum(heights[: parts.index(module)])
        runs = tuple(range(first, first + heights[parts.index(module)]))
        return Rows(f"{whole}.{end}", runs, sum(heights))
    return Rows(f"{_AROUND.get(module, module)}.{end}")


TRANSFORMER = Naming(_of, prefixes=("model.diffusion_model.", "diffusion_model."))
T5 = Naming(prefixes=("transformer.", "t5xxl.transformer."), unused=("lm_head.", "decoder."))
"""The T5 encoder; transformers' own names, but that some files put a prefix before them."""
