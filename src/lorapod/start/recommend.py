"""What the session recommends, and why: the base model, and what trains."""

from __future__ import annotations

from lorapod.start.facts import Facts
from lorapod.start.fits import fit_of

_FOR_PICTURES = ("z-image-turbo", "z-image", "sdxl", "flux-dev", "qwen-image")
_FOR_CLIPS = ("wan2.2-ti2v-5b", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-t2v-a14b")
"""In order; the first that fits is recommended. Licences that allow business use and downloads below 25 GB go first."""

GOOD_FOR = {
    "demo": "a tiny model that comes with lorapod: minutes on any processor, to see how everything goes",
    "z-image-turbo": "people and photographs, quick to draw with; a good first choice",
    "z-image": "people, photographs and styles; slower to draw with than Turbo, learns longer without harm",
    "sdxl": "styles and drawings; the most tools and fine-tunes around it, small",
    "flux-dev": "people and photographs of high quality; large, not for business use",
    "flux-kontext-dev": "edits of pictures, by examples of before and after; large, not for business use",
    "flux2-klein-base-4b": "people, photographs and edits of pictures; small, new",
    "qwen-image": "long prompts and text in pictures; very large",
    "wan2.1-t2v-1.3b": "short clips, small and quick",
    "wan2.1-t2v-14b": "clips of high quality; large",
    "wan2.1-i2v-14b-480p": "clips that begin with a picture of yours; large",
    "wan2.2-ti2v-5b": "clips from text or a first picture, of good quality in little memory",
    "wan2.2-t2v-a14b": "clips of the highest quality: two models, trained one after the other",
    "wan2.2-i2v-a14b": "clips that begin with a picture, of the highest quality: two models, one after the other",
}
"""What a base model is good for, in words for somebody who knows none."""

TRAINERS = {
    "builtin": "nothing to install; stops and goes on at any step",
    "diffusion-pipe": "by tdrussell, run by lorapod",
    "musubi": "musubi-tuner by kohya, run by lorapod",
}


def base_model_for(facts: Facts) -> str:
    """The base model that is recommended: of those that fit the best for what is found, one that is here first; one whose
    weights have to be rounded only where no other of its kind fits."""
    only_clips = bool(facts.found) and all(each.clips and not each.pictures for each in facts.found)
    wanted = (*_FOR_CLIPS, *_FOR_PICTURES) if only_clips else (*_FOR_PICTURES, *_FOR_CLIPS)
    modality = "clip" if only_clips else "picture"
    fits = {name: fit_of(facts.entries[name], facts.gpus) for name in wanted if name in facts.entries}
    fitting = [name for name, fit in fits.items() if not fit.why_not]
    fitting.sort(key=lambda name: (facts.entries[name].modality != modality, fits[name].price))
    here = [name for name in fitting if name in facts.here and facts.entries[name].modality == modality]
    return next(iter([*here, *fitting]), "demo")


def trainer_for(facts: Facts, model: str) -> str:
    """What trains a base model, where nobody says otherwise: lorapod's own where it can, else one that is installed."""
    can = trainers_of(facts, model)
    ready = [name for name in can if facts.trainers.get(name)]
    return "builtin" if "builtin" in can else next(iter([*ready, *can]), "builtin")


def trainers_of(facts: Facts, model: str) -> list[str]:
    """The trainers that can train a base model on what a session asks for, which is no control pictures."""
    entry = facts.entries.get(model)
    if entry is None or entry.packaged or not entry.trainers:
        return ["builtin"]
    return [name for name, support in entry.trainers.items() if not (support.control and support.control.least)]
