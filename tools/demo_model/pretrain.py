"""Pre-trains the demo base model from nothing: tokenizer, VAE, then text encoder and transformer together.

    python tools/demo_model/pretrain.py vae   WORK [--minutes 12]
    python tools/demo_model/pretrain.py encode WORK [--pictures 48000]
    python tools/demo_model/pretrain.py base  WORK [--minutes 60] [--start FOLDER]   (goes on from WORK/base.pt if there)
    python tools/demo_model/pretrain.py save  WORK OUT

WORK keeps the encoded pictures and the state between calls; `save` writes OUT as a diffusers folder of the Z-Image
layout with half-precision weights. The classes are the real ones; only the sizes are small.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from world import draw, random_doodle, random_scene

SIZES = [(128, 128)] * 4 + [(112, 144), (144, 112), (96, 160), (160, 96)]
"""Widths and heights trained on; each is 60 to 64 tokens, which the transformer pads to 64."""

CAPTION_TOKENS = 32
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VAE_CONFIG = {
    "in_channels": 3, "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 32, 64, 96], "layers_per_block": 1, "latent_channels": 16, "norm_num_groups": 16,
    "sample_size": 128, "scaling_factor": 1.0, "shift_factor": 0.0, "use_quant_conv": False, "use_post_quant_conv": False,
    "mid_block_add_attention": False, "force_upcast": False,
}  # fmt: skip
TRANSFORMER_CONFIG = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 16, "dim": 192, "n_layers": 5, "n_refiner_layers": 1, "n_heads": 6,
    "n_kv_heads": 6, "norm_eps": 1e-5, "qk_norm": True, "cap_feat_dim": 128, "rope_theta": 256.0, "t_scale": 1000.0,
    "axes_dims": [8, 12, 12], "axes_lens": [256, 64, 64],
}  # fmt: skip
TEXT_CONFIG = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "head_dim": 32, "max_position_embeddings": 640, "tie_word_embeddings": True,
}  # fmt: skip


def chat(caption: str) -> str:
    """The caption inside the chat template, as Z-Image's pipeline renders it."""
    return f"<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n"


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE whose merges are the world's words; any other word is spelt in bytes and short merges."""
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [random_scene(rng).caption() for _ in range(4000)]
    tokenizer.train_from_iterator([*corpus, *["user\n", "assistant\n"] * 500], trainer)
    return tokenizer


def build_modules(vocab_size: int) -> tuple[nn.Module, nn.Module]:
    """The transformer and the text encoder, freshly initialised; the gates start small as in adaLN-zero."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    transformer = ZImageTransformer2DModel(**TRANSFORMER_CONFIG)
    text_encoder = Qwen3Model(Qwen3Config(vocab_size=vocab_size, **TEXT_CONFIG))
    nn.init.zeros_(transformer.all_final_layer["2-1"].linear.weight)
    nn.init.zeros_(transformer.all_final_layer["2-1"].linear.bias)
    nn.init.normal_(transformer.cap_pad_token, std=0.02)
    nn.init.normal_(transformer.x_pad_token, std=0.02)
    return transformer, text_encoder


def load_modules(folder: Path) -> tuple[nn.Module, nn.Module]:
    """Transformer and text encoder of a folder that `save` wrote, in float32."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Model

    transformer = ZImageTransformer2DModel.from_pretrained(folder / "transformer").float()
    return transformer, Qwen3Model.from_pretrained(folder / "text_encoder").float()


def to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1  # (3, h, w)


# --- the VAE ---


def train_vae(work: Path, minutes: float) -> None:
    """L1 and gradient loss with a small KL term on crops of the world and of doodles; goes on from WORK/vae if there."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    rng = random.Random(0)
    vae = AutoencoderKL(**VAE_CONFIG)
    if (work / "vae").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae")
    vae = vae.to(memory_format=torch.channels_last)
    print(f"VAE {sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=8e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    began, step, smooth = time.time(), 0, 0.0
    while (done := (time.time() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 8e-4 * min(1, (step + 1) / 300) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        side = 64
        batch = []
        for _ in range(10):
            if rng.random() < 0.25:
                picture = random_doodle(128, 128, rng)
            else:
                picture = draw(random_scene(rng), 128, 128, rng)
            corners = [(rng.randint(0, 128 - side), rng.randint(0, 128 - side)) for _ in range(4)]
            crops = [to_tensor(picture.crop((x, y, x + side, y + side))) for x, y in corners]
            batch.append(max(crops, key=lambda crop: crop.std().item()))  # backgrounds are learnt soon enough
        pixels = torch.stack(batch).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            restored = vae.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        restored = restored.float()
        l1 = (restored - pixels).abs().mean()
        edges = sum((restored.diff(dim=d) - pixels.diff(dim=d)).abs().mean() for d in (2, 3))
        loss = l1 + edges + 0.3 * (restored - pixels).square().mean() + 2e-4 * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        smooth = l1.item() if step == 0 else 0.98 * smooth + 0.02 * l1.item()
        step += 1
        if step % 100 == 0 or step == 1:
            print(f"vae step {step} {done:.0%} l1 {smooth:.4f} kl {kl.item():.2f}", flush=True)
    vae.save_pretrained(work / "vae")


# --- encoded pictures ---


@torch.no_grad()
def encode_world(work: Path, count: int) -> None:
    """Draws and encodes `count` pictures a size group; keeps latents (fp16, normalised) and captions in WORK."""
    from diffusers import AutoencoderKL

    rng = random.Random(7)
    vae = AutoencoderKL.from_pretrained(work / "vae").eval()
    groups: dict[tuple[int, int], tuple[list[Tensor], list[str]]] = {}
    for start in range(0, count, 32):
        width, height = rng.choice(SIZES)
        scenes = [random_scene(rng) for _ in range(32)]
        pixels = torch.stack([to_tensor(draw(s, width, height, rng)) for s in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pixels).latent_dist.mean.half()
        store = groups.setdefault((width, height), ([], []))
        store[0].append(latents)
        store[1].extend(s.caption() for s in scenes)
        if start % 3200 == 0:
            print(f"encoded {start}", flush=True)
    flat = torch.cat([torch.cat(g[0]).float().flatten() for g in groups.values()])
    shift, scale = flat.mean().item(), 1 / flat.std().item()
    config = json.loads((work / "vae/config.json").read_text())
    config |= {"scaling_factor": round(scale, 5), "shift_factor": round(shift, 5)}
    (work / "vae/config.json").write_text(json.dumps(config, indent=2))
    saved = {
        size: (((torch.cat(x).float() - shift) * scale).half(), captions) for size, (x, captions) in groups.items()
    }
    torch.save(saved, work / "latents.pt")
    print(f"scale {scale:.4f} shift {shift:.4f}", flush=True)


# --- text encoder and transformer ---


class Joint(nn.Module):
    """Text encoder and transformer on batches of one size, without the lists: equal to the diffusers forward.

    Captions of at most 32 tokens all pad to 32, so no attention mask is needed (`check_forward` proves it).
    """

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.transformer, self.text_encoder = transformer, text_encoder

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor, freqs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        model = self.transformer
        x_freqs, cap_freqs, x_valid = freqs
        b, c, h, w = x.shape
        text = self.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        patches = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (b, n, 64)
        n, pad = patches.shape[1], -patches.shape[1] % 32
        patches = F.pad(patches, (0, 0, 0, pad))
        adaln = model.t_embedder(t * model.t_scale)
        image = torch.where(x_valid[None, :, None], model.all_x_embedder["2-1"](patches), model.x_pad_token)
        for layer in model.noise_refiner:
            image = layer(image, None, x_freqs, adaln)
        caption = torch.where(mask[:, :, None].bool(), model.cap_embedder(text), model.cap_pad_token)
        for layer in model.context_refiner:
            caption = layer(caption, None, cap_freqs)
        both = torch.cat([image, caption], dim=1)
        both_freqs = torch.cat([x_freqs, cap_freqs], dim=1)
        for layer in model.layers:
            both = layer(both, None, both_freqs, adaln)
        out = model.all_final_layer["2-1"](both, c=adaln)[:, :n]
        out = out.view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4)
        return out.reshape(b, c, h, w)

    def freqs(self, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotary tables of the image (1, n, d) and the caption (1, 32, d), and which image tokens are real (n,)."""
        rows, cols = h // 2, w // 2
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
        ids = torch.cat([torch.full((len(grid), 1), CAPTION_TOKENS + 1), grid], dim=1)
        pad = -len(grid) % 32
        ids = torch.cat([ids, torch.zeros(pad, 3, dtype=ids.dtype)])
        caption = torch.zeros(CAPTION_TOKENS, 3, dtype=ids.dtype)
        caption[:, 0] = torch.arange(1, CAPTION_TOKENS + 1)
        embed = self.transformer.rope_embedder
        return embed(ids)[None], embed(caption)[None], torch.arange(len(ids)) < len(grid)


@torch.no_grad()
def check_forward(joint: Joint, encode: Encoder) -> None:
    """The batched forward against the forward of diffusers, captions of unequal length; raises if they differ."""
    for w, h in ((128, 128), (112, 144)):
        x, t = torch.randn(3, 16, h // 8, w // 8), torch.rand(3)
        ids, mask = encode(["a red star", "", "two blue fish, sand background"])
        ours = joint(x, t, ids, mask, joint.freqs(h // 8, w // 8))
        text = joint.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        captions = [text[i][mask[i].bool()] for i in range(3)]
        theirs = torch.stack(joint.transformer([v[:, None] for v in x], t, captions, return_dict=False)[0])[:, :, 0]
        difference = (ours - theirs).abs().max().item()
        print(f"batched forward differs from diffusers by {difference:.1e}", flush=True)
        if difference > 1e-4:
            raise SystemExit("the batched forward is not equal to the forward of diffusers")


class Encoder:
    """Captions to ids and mask, (b, 32) each, with the chat template and right padding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad = tokenizer.token_to_id("<|endoftext|>")

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(captions), CAPTION_TOKENS), self.pad)
        mask = torch.zeros(len(captions), CAPTION_TOKENS, dtype=torch.long)
        for i, caption in enumerate(captions):
            row = self.tokenizer.encode(chat(caption)).ids
            if len(row) > CAPTION_TOKENS:
                raise ValueError(f"caption of {len(row)} tokens: {caption}")
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids, mask


def train_base(work: Path, minutes: float, batch: int, peak: float, start: Path | None) -> None:
    """Flow matching (raw output = x0 - noise, t = 1 - sigma), logit-normal sigma, 10 % empty captions, EMA."""
    torch.manual_seed(1)
    rng = random.Random(1)
    tokenizer = Tokenizer.from_file(str(start / "tokenizer/tokenizer.json")) if start else build_tokenizer()
    tokenizer.save(str(work / "tokenizer.json"))
    encode = Encoder(tokenizer)
    joint = Joint(*(load_modules(start) if start else build_modules(tokenizer.get_vocab_size())))
    for module in (joint.transformer, joint.text_encoder):
        print(f"{type(module).__name__} {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M", flush=True)
    trained = [
        p for n, p in joint.named_parameters() if not n.startswith(("text_encoder.layers.2", "text_encoder.norm"))
    ]
    optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    ema = {k: v.clone() for k, v in joint.state_dict().items()}
    step, spent, smooth = 0, 0.0, 0.0
    state_file = work / "base.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        joint.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, spent = state["ema"], state["step"], state["spent"]
        print(f"goes on at step {step}, {spent / 60:.1f} minutes", flush=True)
    elif start is None:
        nn.init.normal_(joint.transformer.all_final_layer["2-1"].linear.weight, std=0.02)
        check_forward(joint, encode)
        nn.init.zeros_(joint.transformer.all_final_layer["2-1"].linear.weight)
    data = torch.load(work / "latents.pt", weights_only=True)
    tokens = {size: encode(captions) for size, (_, captions) in data.items()}
    empty, empty_mask = encode([""])
    freqs = {(w, h): joint.freqs(h // 8, w // 8) for w, h in data}
    weights = [len(captions) for _, captions in data.values()]
    fast = torch.compile(joint, dynamic=False)
    last = saved = time.time()
    while (done := spent / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 200) * (0.01 + 0.99 * min(1.0, 1.6 * (1 - done)))
        size = rng.choices(list(data), weights)[0]
        pick = torch.randint(len(data[size][1]), (batch,))
        x0 = data[size][0][pick].float()
        ids, mask = tokens[size][0][pick].clone(), tokens[size][1][pick].clone()
        drop = torch.rand(batch) < 0.1
        ids[drop], mask[drop] = empty, empty_mask
        noise = torch.randn_like(x0)
        sigma = torch.sigmoid(torch.randn(batch) * 1.1 + 0.5)
        s = sigma.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            out = fast((1 - s) * x0 + s * noise, 1 - sigma, ids, mask, freqs[size])
        loss = (out.float() - (x0 - noise)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            for key, value in joint.state_dict().items():
                ema[key].lerp_(value, 1 - decay) if value.is_floating_point() else ema[key].copy_(value)
        smooth = loss.item() if smooth == 0 else 0.99 * smooth + 0.01 * loss.item()
        step += 1
        now = time.time()
        # A sleeping machine or the first compilation is not training time.
        spent, last = spent + min(now - last, 5.0), now
        if step % 100 == 0 or step == 1:
            print(f"base step {step} {done:.0%} loss {smooth:.4f} {100 * spent / step / 100:.3f} s/step", flush=True)
        if now - saved > 240 or spent / 60 >= minutes:
            state = {"model": joint.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema}
            torch.save(state | {"step": step, "spent": spent}, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
            saved = now


# --- the folder ---


def save(work: Path, out: Path) -> None:
    """Writes the diffusers folder with EMA weights in float16."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    raw = Tokenizer.from_file(str(work / "tokenizer.json"))
    model = json.loads(raw.to_str())["model"]
    tokenizer: PreTrainedTokenizerFast = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=640,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "right"
    for caption in ("a red star on the left, mint background", "two momo"):
        if tokenizer(chat(caption)).input_ids != raw.encode(chat(caption)).ids:
            raise SystemExit(f"the saved tokenizer splits differently: {caption}")
    transformer, text_encoder = build_modules(raw.get_vocab_size())
    joint = Joint(transformer, text_encoder)
    joint.load_state_dict(torch.load(work / "base.pt", weights_only=True)["ema"])
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.5),
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        transformer=transformer.half(),
    )
    pipeline.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["vae", "encode", "base", "save"])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--pictures", type=int, default=48_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--start", type=Path, help="base: weights to begin with, a folder that `save` wrote")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "vae":
        train_vae(args.work, args.minutes)
    elif args.what == "encode":
        encode_world(args.work, args.pictures)
    elif args.what == "base":
        train_base(args.work, args.minutes, args.batch, args.lr, args.start)
    else:
        save(args.work, args.out)


if __name__ == "__main__":
    main()
