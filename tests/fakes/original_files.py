"""Single files of other families as their makers name the weights, made from a folder in diffusers layout by tables that are
written anew here, so that what reads them is checked by something else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]


def component(folder: Path) -> Tensors:
    """All tensors of a component's folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def renamed(tensors: Tensors, rules: Iterable[tuple[str, str]]) -> Tensors:
    """Every rule is applied to every name, in order."""
    out = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor.clone()
    return out


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _fuse(tensors: Tensors, parts: tuple[str, ...], whole: str) -> Tensors:
    """`…parts[i].weight` and bias one below the other as `…whole.weight`."""
    out, first = dict(tensors), parts[0]
    for name in tensors:
        if match := re.fullmatch(rf"(.*\.){re.escape(first)}\.(weight|bias)", name):
            rows = [out.pop(f"{match[1]}{part}.{match[2]}") for part in parts]
            out[f"{match[1]}{whole}.{match[2]}"] = torch.cat(rows)
    return out


def flux_transformer(folder: Path) -> Tensors:
    """BFL's names."""
    tensors = component(folder / "transformer")
    single = {n: t for n, t in tensors.items() if n.startswith("single_")}
    double = {n: t for n, t in tensors.items() if n not in single}
    double = _fuse(double, ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv")
    double = _fuse(double, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv")
    single = _fuse(single, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1")
    for end in ("weight", "bias"):
        scale, shift = double.pop(f"norm_out.linear.{end}").chunk(2)
        double[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat([shift, scale])
    single = renamed(
        single,
        [("^single_transformer_blocks", "single_blocks"), (r"attn\.norm_q\.weight", "norm.query_norm.scale"),
         (r"attn\.norm_k\.weight", "norm.key_norm.scale"), ("proj_out", "linear2"), (r"norm\.linear", "modulation.lin")],
    )  # fmt: skip
    double = renamed(
        double,
        [(r"^proj_out\.", "final_layer.linear."), ("^transformer_blocks", "double_blocks"),
         (r"attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
         (r"attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
         (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
         (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
         (r"attn\.to_out\.0", "img_attn.proj"), (r"attn\.to_add_out", "txt_attn.proj"),
         (r"ff\.net\.0\.proj", "img_mlp.0"), (r"ff\.net\.2", "img_mlp.2"),
         (r"ff_context\.net\.0\.proj", "txt_mlp.0"), (r"ff_context\.net\.2", "txt_mlp.2"),
         (r"norm1\.linear", "img_mod.lin"), (r"norm1_context\.linear", "txt_mod.lin"),
         (r"^time_text_embed\.timestep_embedder", "time_in"), (r"^time_text_embed\.text_embedder", "vector_in"),
         (r"^time_text_embed\.guidance_embedder", "guidance_in"), (r"_in\.linear_1", "_in.in_layer"),
         (r"_in\.linear_2", "_in.out_layer"), ("^context_embedder", "txt_in"), ("^x_embedder", "img_in")],
    )  # fmt: skip
    return single | double


def wan_transformer(folder: Path) -> Tensors:
    """The makers' names."""
    return renamed(
        component(folder / "transformer"),
        [(r"norm2\.(weight|bias)$", r"norm3.\1"), (r"(embedder\.norm)3", r"\g<1>2"), (r"attn1\.", "self_attn."),
         (r"attn2\.", "cross_attn."), (r"to_([qkv])\.", r"\1."), (r"to_out\.0\.", "o."), (r"add_([kv])_proj", r"\1_img"),
         (r"norm_added_k", "norm_k_img"), (r"(blocks\.\d+\.ffn\.)net\.0\.proj", r"\g<1>0"),
         (r"(blocks\.\d+\.ffn\.)net\.2", r"\g<1>2"), (r"^scale_shift_table", "head.modulation"),
         ("scale_shift_table", "modulation"), (r"^proj_out", "head.head"),
         (r"^condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
         (r"^condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"),
         (r"^condition_embedder\.time_proj", "time_projection.1"),
         (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
         (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
         (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
         (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4")],
    )  # fmt: skip


_WAN_VAE = [(r"norm1\.gamma", "residual.0.gamma"), (r"\.conv1\.", ".residual.2."), (r"norm2\.gamma", "residual.3.gamma"),
            (r"\.conv2\.", ".residual.6."), ("conv_shortcut", "shortcut"), (r"mid_block\.resnets\.0", "middle.0"),
            (r"mid_block\.resnets\.1", "middle.2"), (r"mid_block\.attentions\.0", "middle.1"),
            (r"conv_in\.", "conv1."), (r"norm_out\.", "head.0."), (r"conv_out\.", "head.2."),
            (r"^quant_conv", "conv1"), (r"^post_quant_conv", "conv2")]  # fmt: skip


def wan_vae(folder: Path) -> Tensors:
    """The names of Wan 2.1's VAE of two residual blocks a level."""
    tensors = renamed(component(folder), _WAN_VAE)

    def row(match: re.Match[str]) -> str:
        level, kind, layer = int(match[1]), match[2], int(match[3])
        return f"upsamples.{level * 4 + (3 if kind == 'upsamplers' else layer)}"

    return {
        re.sub(
            r"down_blocks\.(\d+)", r"downsamples.\1", re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d)", row, n)
        ): t
        for n, t in tensors.items()
    }


def wan22_vae(folder: Path, layers: int) -> Tensors:
    """The names of Wan 2.2's VAE, of so many residual blocks a level on the way down."""
    return renamed(
        component(folder),
        [*_WAN_VAE, (r"down_blocks\.(\d+)\.resnets\.", r"downsamples.\1.downsamples."),
         (r"down_blocks\.(\d+)\.downsampler\.", rf"downsamples.\1.downsamples.{layers}."),
         (r"up_blocks\.(\d+)\.resnets\.", r"upsamples.\1.upsamples."),
         (r"up_blocks\.(\d+)\.upsampler\.", rf"upsamples.\1.upsamples.{layers + 1}.")],
    )  # fmt: skip


def sdxl_checkpoint(folder: Path, unet_names: Callable[[str], str], vae_names: Callable[[str], str]) -> Tensors:
    """One file with all four parts. The names of U-Net and VAE are given: diffusers' converter is asked about them."""
    big = component(folder / "text_encoder_2")
    out: Tensors = {"logit_scale": torch.ones(())}
    for name in [n for n in big if n.endswith(("q_proj.weight", "q_proj.bias"))]:
        rows = [big.pop(name.replace("q_proj", f"{which}_proj")) for which in "qkv"]
        big[name.replace("q_proj.", "in_proj_")] = torch.cat(rows)
    big["text_projection"] = big.pop("text_projection.weight").T.contiguous()
    big = renamed(
        big,
        [(r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
         (r"^text_model\.embeddings\.", ""), (r"^text_model\.final_layer_norm", "ln_final"),
         (r"^text_model\.encoder\.layers", "transformer.resblocks"), (r"layer_norm([12])", r"ln_\1"),
         (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"), (r"self_attn\.", "attn.")],
    )  # fmt: skip
    small = {
        name if name.startswith("text_model.") else f"text_model.{name}": tensor
        for name, tensor in component(folder / "text_encoder").items()
    }
    out |= prefixed(small, "conditioner.embedders.0.transformer.")
    out |= prefixed(big | {"logit_scale": torch.ones(())}, "conditioner.embedders.1.model.")
    out |= {"model.diffusion_model." + unet_names(n): t for n, t in component(folder / "unet").items()}
    out |= {"first_stage_model." + vae_names(n): t for n, t in component(folder / "vae").items()}
    return out
