"""A tiny Z-Image in single files: the weights of a diffusers folder under the names that ComfyUI's files have.

The names are written out here as they were seen in such files, and not taken from the tables that are tested.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def comfy_transformer(folder: Path) -> dict[str, Tensor]:
    """The transformer as ComfyUI has it: fused qkv, `out`, `q_norm`, `x_embedder`, and a `norm_final` that is not used."""
    named: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "transformer/diffusion_pytorch_model.safetensors").items():
        if ".attention.to_q." in name:
            continue
        if ".attention.to_k." in name:
            continue
        name = name.replace("all_x_embedder.2-1.", "x_embedder.").replace("all_final_layer.2-1.", "final_layer.")
        name = name.replace(".attention.norm_q.", ".attention.q_norm.").replace(".norm_k.", ".k_norm.")
        named[name.replace(".attention.to_out.0.", ".attention.out.")] = tensor
    plain = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    for name in [n for n in named if ".attention.to_v." in n]:
        parts = [plain[name.replace("to_v", which)] for which in ("to_q", "to_k", "to_v")]
        named[name.replace("to_v", "qkv")] = torch.cat(parts)
        del named[name]
    named["norm_final.weight"] = torch.ones(32)
    return named


def comfy_text_encoder(folder: Path) -> dict[str, Tensor]:
    plain = load_file(folder / "text_encoder/model.safetensors")
    return {f"model.{name}": tensor for name, tensor in plain.items()} | {"lm_head.weight": torch.zeros(4, 16)}


def comfy_vae(folder: Path) -> dict[str, Tensor]:
    """The VAE as FLUX.1's `ae.safetensors` has it: attention as 1 x 1 convolutions, up blocks counted from the end."""
    named: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = name.replace("down_blocks", "down").replace(".resnets.", ".block.")
        name = name.replace(".downsamplers.0.", ".downsample.").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("mid_block.block.0", "mid.block_1").replace("mid_block.block.1", "mid.block_2")
        name = name.replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
            name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
            name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", name)
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        named[name] = tensor.contiguous()
    return named


def single_files(folder: Path, into: Path, dtype: torch.dtype = torch.bfloat16) -> dict[str, Path]:
    """Writes the three files; the VAE stays in float32, as its file is published."""
    into.mkdir(parents=True, exist_ok=True)
    found = {"transformer": comfy_transformer(folder), "text_encoder": comfy_text_encoder(folder)}
    paths = {name: into / f"{name}.safetensors" for name in (*found, "vae")}
    for name, tensors in found.items():
        save_file({key: value.to(dtype) for key, value in tensors.items()}, paths[name])
    save_file(comfy_vae(folder), paths["vae"])
    return paths


def as_bf16(folder: Path) -> None:
    """Rounds the weights of a diffusers folder to bf16, in place, the VAE's excepted."""
    for part in ("transformer/diffusion_pytorch_model", "text_encoder/model"):
        path = folder / f"{part}.safetensors"
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def fp8_scaled(source: Path, into: Path, style: str, by_row: bool = False) -> dict[str, Tensor]:
    """Rewrites a file's matrices as scaled fp8 and returns what each of its tensors then means, in float32.

    Args:
        style: `scaled_fp8` (older files: `scale_weight` and a marker) or `comfy_quant` (newer: `weight_scale`).
    """
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in load_file(source).items():
        if tensor.ndim != 2 or not name.endswith(".weight") or "embed_tokens" in name:
            stored[name], meant[name] = tensor, tensor.float()
            continue
        most = tensor.float().abs().amax(1) if by_row else tensor.float().abs().amax()
        scale = (most / 448).clamp(min=1e-12)
        column = scale[:, None] if by_row else scale
        stored[name] = (tensor.float() / column).to(torch.float8_e4m3fn)
        meant[name] = stored[name].float() * column
        base = name.removesuffix("weight")
        stored[base + ("scale_weight" if style == "scaled_fp8" else "weight_scale")] = scale
        if style == "scaled_fp8":
            stored[base + "scale_input"] = torch.ones(())
        else:
            note = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[base + "comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    if style == "scaled_fp8":
        stored["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(stored, into)
    return meant
