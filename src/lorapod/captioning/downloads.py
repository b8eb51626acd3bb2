"""How much has to be fetched before a captioner that runs on this machine can write, for people who are to choose one.

Sizes are those of weights in 16 bits as published: JoyCaption's and the tagger's from their repositories' listings, Qwen3-VL
8B's from Ollama's; its other sizes are two bytes a parameter. None was fetched to measure it.
"""

from __future__ import annotations

from pathlib import Path

from lorapod.captioning.local import fetched_folder

_GIGABYTES = {
    "fancyfeast/llama-joycaption-beta-one-hf-llava": 17.0,
    "Qwen/Qwen3-VL-2B-Instruct": 4.3,
    "Qwen/Qwen3-VL-4B-Instruct": 9.0,
    "Qwen/Qwen3-VL-8B-Instruct": 18.0,
    "Qwen/Qwen3-VL-32B-Instruct": 67.0,
    "SmilingWolf/wd-eva02-large-tagger-v3": 1.3,
}


def repository_of(captioner: str, gpu_gb: float) -> str:
    """The repository that a captioner takes its model from on a GPU of so many GB (2^30 bytes); empty for none."""
    from lorapod.captioning import joycaption, qwen_vl, tagger

    if captioner == "qwen-vl":
        return qwen_vl.repository_for(gpu_gb)
    return {"joycaption": joycaption.REPOSITORY, "tagger": tagger.REPOSITORY}.get(captioner, "")


def gigabytes_to_fetch(captioner: str, gpu_gb: float, models: Path) -> float:
    """About how many GB (10^9 bytes) are to be fetched before the first caption; 0 where nothing is."""
    repository = repository_of(captioner, gpu_gb)
    return 0.0 if not repository or fetched_folder(repository, models) else _GIGABYTES[repository]
