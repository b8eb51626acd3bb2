"""JoyCaption (fancyfeast/llama-joycaption-beta-one-hf-llava) on this machine's GPU, through transformers; pictures alone.

A LLaVA of SigLIP and Llama 3.1 8B, whose licence therefore is Llama's. Pictures are squashed to the vision tower's square
with Lanczos, as it was trained. Precision by the GPU's memory: bf16 from 20 GB, else 8 or 4 bits through bitsandbytes, the
vision tower kept as it is. Not verified: the published repository was never opened; a random model of its make was run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lorapod.captioning.base import Answer, Ask, Captioner, ItemError, Kind
from lorapod.captioning.local import Decoded, LocalCaptioner, find_model
from lorapod.captioning.registry import Options, largest_gpu_gb
from lorapod.captioning.vllm_server import VllmCaptioner, find_vllm
from lorapod.data.names import shown
from lorapod.errors import MissingPackageError, RequestError

REPOSITORY = "fancyfeast/llama-joycaption-beta-one-hf-llava"
BF16_GB, EIGHT_BIT_GB, FOUR_BIT_GB = 20.0, 12.0, 8.0
"""GPU memory from which on each precision fits (its own README for bf16 and 4 bits; 8 bits by the weights' size)."""

_SYSTEM = "You are a helpful image captioner."
_NOT_QUANTISED = ["vision_tower", "multi_modal_projector", "lm_head"]
_TOP_P = 0.9


def create(options: Options) -> Captioner:
    """From the options; the model is fetched into the workspace where `model` is no folder. Through a vLLM server of our
    own where vLLM is installed and the GPU holds unquantised weights, unless LORAPOD_VLLM is 0.

    Raises:
        RequestError: There is no GPU that holds it.
        MissingPackageError: 8 or 4 bits are needed, and bitsandbytes is not installed.
        FetchError: It cannot be fetched.
        StageFailedError: vLLM did not come up.
    """
    gigabytes = largest_gpu_gb()
    on_cpu = options.environment.get("LORAPOD_CAPTION_ON_CPU") == "1"
    if gigabytes < FOUR_BIT_GB and not on_cpu:
        raise RequestError(
            "JoyCaption needs a GPU with 8 GB",
            f"The largest here has {gigabytes:.0f} GB." if gigabytes else "There is none here.",
            "Take another captioner, or set LORAPOD_CAPTION_ON_CPU=1 (minutes for each picture).",
        )
    precision = "fp32" if on_cpu and gigabytes < FOUR_BIT_GB else precision_for(gigabytes)
    folder = find_model(options.model or REPOSITORY, options.models, options.environment, heard=options.heard)
    vllm = find_vllm() if options.environment.get("LORAPOD_VLLM") != "0" else None
    if vllm and precision == "bf16" and options.models is not None and not options.batch:
        log = options.models / "captioners" / "vllm.log"
        return VllmCaptioner("joycaption", folder, JoyCaption.kinds, log, command=vllm, environment=options.environment)
    batch = 1 if precision == "fp32" and not options.batch else options.batch or batch_for(gigabytes, precision)
    return LocalCaptioner("joycaption", JoyCaption(folder, precision), batch)


def precision_for(gigabytes: float) -> str:
    """`bf16`, `8-bit` or `4-bit`, by the GPU's memory in GB (2^30 bytes).

    Raises:
        MissingPackageError: bitsandbytes is needed and not there.
    """
    from importlib.util import find_spec

    if gigabytes >= BF16_GB:
        return "bf16"
    if find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "JoyCaption needs the package bitsandbytes on this GPU",
            f"It has {gigabytes:.0f} GB; unquantised weights take 17.",
            "Install it with: pip install bitsandbytes",
        )
    return "8-bit" if gigabytes >= EIGHT_BIT_GB else "4-bit"


def batch_for(gigabytes: float, precision: str) -> int:
    """Pictures at a time: what is left beside the weights, at about a gigabyte a picture."""
    weights = {"bf16": 17.0, "8-bit": 10.0, "4-bit": 7.0}.get(precision, 17.0)
    return max(1, min(16, int(gigabytes - weights - 1.0)))


class JoyCaption:
    """The model, loaded when it is first asked.

    Args:
        folder: In transformers' layout.
        precision: `bf16`, `8-bit`, `4-bit`, or `fp32` on the processor.
    """

    kinds: frozenset[Kind] = frozenset({"picture"})

    def __init__(self, folder: Path, precision: str) -> None:
        self.folder, self.precision, self.name = folder, precision, folder.name
        self._model: Any = None
        self._processor: Any = None
        self._side = int(_config(folder)["vision_config"]["image_size"])

    def decode(self, ask: Ask) -> Image.Image:
        """The picture, upright, over white, squashed to the square that the model looks at."""
        try:
            with Image.open(ask.path) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                    rgba = image.convert("RGBA")
                    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
                return image.convert("RGB").resize((self._side, self._side), Image.Resampling.LANCZOS)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ItemError(f"{shown(ask.path.name)} cannot be read", str(error)) from error

    def write(self, batch: Sequence[Decoded]) -> list[Answer]:
        import torch

        self._load()
        processor, model = self._processor, self._model
        texts = [
            processor.apply_chat_template(
                [
                    {"role": "system", "content": each.ask.system or _SYSTEM},
                    {"role": "user", "content": each.ask.prompt},
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            for each in batch
        ]
        # Through the template as text first: other ways put a second beginning-of-text before it.
        inputs = processor(text=texts, images=[each.media for each in batch], return_tensors="pt", padding="longest")
        inputs = inputs.to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        hottest = max(each.ask.temperature for each in batch)
        sampling = {"do_sample": True, "temperature": hottest, "top_p": _TOP_P, "top_k": None} if hottest > 0 else {}
        most = max(each.ask.max_tokens for each in batch)
        with torch.inference_mode():
            made = model.generate(
                **inputs,
                max_new_tokens=most,
                use_cache=True,
                **(sampling or {"do_sample": False, "temperature": None, "top_p": None}),
            )
        start, end = inputs["input_ids"].shape[1], processor.tokenizer.eos_token_id
        answers = []
        for row in made[:, start:].tolist():
            is_whole = end in row
            kept = row[: row.index(end)] if is_whole else row
            text = processor.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers.append(Answer(text.strip(), is_whole, output_tokens=len(kept), dollars=0.0))
        return answers

    def free(self) -> None:
        if self._model is None:
            return
        import gc

        import torch

        self._model = self._processor = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        processor = AutoProcessor.from_pretrained(self.folder)
        tokenizer = processor.tokenizer
        if processor.chat_template is None:
            processor.chat_template = tokenizer.chat_template
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        arguments: dict[str, Any] = {"dtype": torch.float32 if self.precision == "fp32" else torch.bfloat16}
        if self.precision in ("8-bit", "4-bit"):
            arguments["quantization_config"] = _quantised(self.precision)
        if self.precision != "fp32":
            arguments["device_map"] = 0
        self._model = LlavaForConditionalGeneration.from_pretrained(self.folder, **arguments).eval()
        self._processor = processor


def _quantised(precision: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if precision == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NOT_QUANTISED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=_NOT_QUANTISED,
    )


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} holds no model", str(error), "Name the folder of JoyCaption.") from error
    if not isinstance(found, dict) or found.get("model_type") != "llava":
        raise RequestError(f"{folder} holds another kind of model", "It is no LLaVA.", "Name the folder of JoyCaption.")
    return found
