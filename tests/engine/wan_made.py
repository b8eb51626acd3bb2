"""Tiny random base models of the real Wan classes, in diffusers layout, with a tokenizer that is built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = (
    *[
        "a",
        "the",
        "red",
        "blue",
        "zorb",
        "star",
        "fish",
        "ball",
        "turns",
        "left",
        "right",
        "jumps",
        "clip",
        "number",
        "on",
        "in",
        "sand",
        "white",
    ],
    *"0123456789",
)
_COMMON: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "freq_dim": 256,
    "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}  # fmt: skip
DENOISERS: dict[str, dict[str, Any]] = {
    "t2v": {"in_channels": 16, "out_channels": 16},
    "i2v": {"in_channels": 36, "out_channels": 16, "image_dim": 16, "added_kv_proj_dim": 24},
    "t2v-a14b": {"in_channels": 16, "out_channels": 16},
    "i2v-a14b": {"in_channels": 36, "out_channels": 16},
    "ti2v-5b": {"in_channels": 48, "out_channels": 48},
}
"""Kind of base model to what its denoiser differs in."""

FULL_SIZE: dict[str, dict[str, Any]] = {
    "t2v-1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "t2v-14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
    "i2v-14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40, "in_channels": 36,
                "image_dim": 1280, "added_kv_proj_dim": 5120},
    "i2v-a14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40, "in_channels": 36},
    "ti2v-5b": {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
}  # fmt: skip


def tokenizer() -> Any:
    """Words to numbers, with an end-of-text token after each text as T5's tokenizer has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build(folder: Path, kind: str = "t2v", boundary: float = 0.875) -> Path:
    """Writes a base model of one of the kinds in `DENOISERS`."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        UMT5Config,
        UMT5EncoderModel,
    )

    torch.manual_seed(0)

    def denoiser() -> Any:
        made = WanTransformer3DModel(**_COMMON, **DENOISERS[kind])
        torch.nn.init.normal_(made.proj_out.weight, std=0.2)
        return made

    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                           temperal_downsample=[False, True, True])  # fmt: skip
    if kind == "ti2v-5b":
        vae = AutoencoderKLWan(
            base_dim=4, decoder_base_dim=4, z_dim=48, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
            latents_mean=[0.1 * (i % 5) for i in range(48)], latents_std=[1.0 + 0.05 * (i % 7) for i in range(48)],
            scale_factor_spatial=16, scale_factor_temporal=4,
        )  # fmt: skip
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
                   feed_forward_proj="gated-gelu")
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    parts: dict[str, Any] = {"tokenizer": tokenizer(), "text_encoder": text, "vae": vae, "scheduler": scheduler,
                             "transformer": denoiser()}  # fmt: skip
    if kind.endswith("a14b"):
        parts |= {"transformer_2": denoiser(), "boundary_ratio": boundary}
    if kind == "ti2v-5b":
        parts["expand_timesteps"] = True
    if kind.startswith("i2v"):
        config = CLIPVisionConfig(hidden_size=16, projection_dim=16, num_hidden_layers=3, num_attention_heads=2,
                                  image_size=224, intermediate_size=16, patch_size=14)  # fmt: skip
        clip = kind == "i2v"
        parts |= {"image_encoder": CLIPVisionModel(config) if clip else None,
                  "image_processor": CLIPImageProcessor() if clip else None}  # fmt: skip
        WanImageToVideoPipeline(**parts).save_pretrained(folder)
    else:
        WanPipeline(**parts).save_pretrained(folder)
    return folder


def full_size(name: str) -> Any:
    """The denoiser of `FULL_SIZE` on the meta device."""
    import torch
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(**{"text_dim": 4096, **FULL_SIZE[name]})
