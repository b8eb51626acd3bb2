"""Tiny random base models of the real SDXL, FLUX.1 and Qwen-Image classes, in diffusers layout; tokenizers are made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # models this small are slower on several threads, the more so where tests run side by side

VAE: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1,
    "norm_num_groups": 4, "sample_size": 64,
}  # fmt: skip

SDXL_FULL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "transformer_layers_per_block": (1, 2, 10), "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}  # fmt: skip
FLUX_FULL: dict[str, Any] = {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True}
QWEN_FULL: dict[str, Any] = {"num_layers": 60}


def clip_tokenizer() -> Any:
    """A CLIP tokenizer of single letters: byte-level BPE without merges, 77 positions."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,."
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "re</w>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("r", "e</w>")], model_max_length=77)


def t5_tokenizer() -> Any:
    """A unigram tokenizer of letters and a few words, with T5's end mark and padding."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.", "▁zorb", "▁star", "▁red"]
    vocabulary = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def qwen_tokenizer() -> Any:
    """A byte-level tokenizer with ChatML's marks, in which the template is longer than the tokens that are dropped."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def _clip(kind: Any, vocabulary: int, hidden: int = 32) -> Any:
    from transformers import CLIPTextConfig

    return kind(
        CLIPTextConfig(
            bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_size=hidden, intermediate_size=37,
            num_attention_heads=4, num_hidden_layers=4, vocab_size=vocabulary, hidden_act="gelu", projection_dim=32,
        )
    )  # fmt: skip


def build_sdxl(folder: Path, **scheduler: Any) -> Path:
    """A UNet of two levels; `scheduler` adds to the scheduler's configuration."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(32, 64), layers_per_block=1,
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )  # fmt: skip
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
              "timestep_spacing": "leading", "prediction_type": "epsilon"}  # fmt: skip
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE, latent_channels=4, scaling_factor=0.13025),
        text_encoder=_clip(CLIPTextModel, len(tokenizer)), text_encoder_2=_clip(CLIPTextModelWithProjection, len(tokenizer)),
        tokenizer=tokenizer, tokenizer_2=clip_tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(**{**config, **scheduler}), force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_flux(folder: Path, guidance_embeds: bool = True, pipeline: str = "FluxPipeline") -> Path:
    import diffusers
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    getattr(diffusers, pipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=AutoencoderKL(**VAE, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                          use_post_quant_conv=False),
        text_encoder=_clip(CLIPTextModel, len(clip)), tokenizer=clip,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(t5), d_model=32, d_kv=8, d_ff=37, num_layers=2,
                                               num_heads=4, feed_forward_proj="gated-gelu")),
        tokenizer_2=t5, transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_kontext(folder: Path) -> Path:
    return build_flux(folder, pipeline="FluxKontextPipeline")


def build_qwen_image(folder: Path) -> Path:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=3,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    size = len(tokenizer)
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 2, "vocab_size": size, "rope_theta": 1000000.0,
                "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            },
            vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                           "out_hidden_size": 16},
            hidden_size=16, vocab_size=size, vision_end_token_id=1, vision_start_token_id=2, vision_token_id=3,
        )
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                 temperal_downsample=[False, True, True])  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256,
        max_image_seq_len=8192, shift_terminal=0.02, time_shift_type="exponential",
    )  # fmt: skip
    QwenImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(folder)
    return folder


def full_size(family: str) -> torch.nn.Module:
    """The denoiser as it is published, on the meta device."""
    from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, UNet2DConditionModel

    kinds = {"sdxl": (UNet2DConditionModel, SDXL_FULL), "flux": (FluxTransformer2DModel, FLUX_FULL),
             "qwen_image": (QwenImageTransformer2DModel, QWEN_FULL)}  # fmt: skip
    kind, config = kinds[family]
    with torch.device("meta"):
        return kind(**config)


def full_size_encoders() -> tuple[torch.nn.Module, torch.nn.Module]:
    """SDXL's text encoders as they are published, CLIP-L and OpenCLIP-bigG, on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(width: int, layers: int) -> Any:
        return CLIPTextConfig(
            vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, projection_dim=width,
        )  # fmt: skip

    with torch.device("meta"):
        return CLIPTextModel(config(768, 12)), CLIPTextModelWithProjection(config(1280, 32))


def pipeline_of(folder: Path) -> Any:
    """The diffusers pipeline of a folder, quiet."""
    import diffusers

    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
