"""The typed recipe: one TOML file that says all of a training.

Field descriptions are the reference: the docs are generated from them. Unknown keys are refused. What a person leaves
out is filled by presets (`lorapod.recipe.presets`) before this model sees it, so every default written here is only the
last resort.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lorapod.recipe.choices import (
    AdapterKind,
    Attention,
    Checkpointing,
    ClipWindows,
    ExpertChoice,
    HuberSchedule,
    LoraFormat,
    LossKind,
    LossWeighting,
    OptimizerKind,
    Precision,
    Quantization,
    Regularisation,
    ScheduleKind,
    Targets,
    TimestepSampling,
    TrainerName,
)


class Section(BaseModel):
    """A table of the recipe."""

    model_config = ConfigDict(extra="forbid", use_enum_values=False, validate_default=True, allow_inf_nan=False)


_MOST = 1_000_000_000
"""Bound of every count that has no smaller one: no training gets there, and it fits wherever counts are kept or added up."""

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class BaseModelSection(Section):
    """What the LoRA is trained on."""

    name: str = Field(
        description="Name of a base model of the catalogue (`lorapod models` lists them), or the path of a folder in "
        "diffusers layout."
    )
    expert: ExpertChoice = Field(
        ExpertChoice.BOTH,
        description="Of a base model with two experts (Wan 2.2 A14B): which is trained. `both` trains one after the other, "
        "each for the whole number of steps, into two LoRA files whose names end in -high and -low.",
    )
    quantize: Quantization = Field(
        Quantization.AUTO,
        description="Hold the frozen weights in fewer bits: `fp8` and `int8` halve them, `nf4` leaves a little over a "
        "quarter. Steps take longer and learn from a slightly different base model (`int8` is the closest, `nf4` the "
        "furthest); the LoRA itself is trained and saved in full. `auto` does so only where the GPU does not hold them "
        "otherwise.",
    )
    training_adapter: Literal["none", "catalogue"] | Path = Field(
        "none",
        description="A LoRA that is merged into the base model before training and left out of the result, as for "
        "Z-Image-Turbo (its distillation would be lost otherwise): a file, or `catalogue` for the one that is fetched "
        "with the base model.",
    )
    training_adapter_strength: float = Field(1.0, description="Strength at which `training_adapter` is merged.")


class DatasetSection(Section):
    """One folder of pictures and clips with captions beside them, and how it is used."""

    path: Path = Field(description="Folder of pictures and clips; a relative path starts at the recipe's folder.")
    repeats: int = Field(1, ge=1, le=100_000, description="How many times each item is seen in an epoch.")
    resolutions: list[Annotated[int, Field(ge=64, le=4096)]] = Field(
        [1024],
        min_length=1,
        description="Sides in pixels of the square whose area the buckets keep; with several, each item is trained at "
        "each of them.",
    )
    frames: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        [33],
        min_length=1,
        description="Lengths in frames that clips are cut to, at the base model's own frame rate: of these, the longest "
        "that a clip is long enough for. Pictures are single frames whatever stands here.",
    )
    clip_windows: ClipWindows = Field(
        ClipWindows.HEAD,
        description="Which stretches of a clip are trained on: its beginning (`head`), its `middle`, "
        "`windows_per_clip` of them spread evenly (`uniform`), or one after the other to its end (`every`).",
    )
    windows_per_clip: int = Field(1, ge=1, le=64, description='With `clip_windows = "uniform"`: how many stretches.')
    recursive: bool = Field(False, description="Look into sub-folders too.")
    trigger_word: str = Field("", description="Word put before every caption that does not hold it already.")
    caption_prefix: str = Field("", description="Text put before every caption (after the trigger word).")
    caption_dropout: Share = Field(
        0.05, description="Share of steps at which an item is trained with an empty caption."
    )
    caption_per_line: bool = Field(
        False,
        description="Each line of a caption file is a caption of its own (long, short, tags), and they are trained with in "
        "turn; held-out items are evaluated with the first. Otherwise the lines are one caption.",
    )
    shuffle_tags: bool = Field(False, description="Shuffle comma-separated tags anew in every epoch.")
    keep_tags: int = Field(
        1, ge=0, le=_MOST, description="With `shuffle_tags`: how many leading tags stay where they are."
    )
    caption_variants: int = Field(
        4, ge=1, le=64, description="With `shuffle_tags`: how many shuffled captions of each item are cached and used."
    )
    allow_missing_captions: bool = Field(
        False, description="Train items without a caption file with the trigger word and prefix alone."
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Share of items held out of training for the evaluation loss; 0 holds out none."
    )
    masks: Path | None = Field(
        None,
        description="Folder of masks, paired with items by name: what is white in a mask is learnt, what is black is "
        "not. An item without a mask is learnt whole. A relative path starts at the recipe's folder.",
    )
    alpha_masks: bool = Field(
        False, description="Take the alpha channel of pictures that have one as their mask, where `masks` holds none."
    )
    unmasked_weight: Share = Field(
        0.1, description="Weight of the loss where a mask is black; 1 would learn everything alike."
    )
    regularisation: Regularisation = Field(
        Regularisation.NONE,
        description="Pictures of what the base model knows already, such as other people, so that it stays known. `learn` "
        "trains on them as they are (DreamBooth's prior preservation); `preserve` trains towards what the base model itself "
        "makes of them, which costs one more forward pass. They never get a trigger word, have an evaluation line of their "
        "own, and are drawn in the ratio that `training.regularisation_share` says.",
    )
    loss_weight: float = Field(1.0, gt=0, le=100, description="Weight of the loss of its items.")
    control: Path | None = Field(
        None,
        description="Folder of control pictures for base models that edit, paired with items by name: `cat.png`, or "
        "`cat_0.png`, `cat_1.png` where an item has several. A relative path starts at the recipe's folder.",
    )
    skip_unusable: bool = Field(
        False, description="Train without items that cannot be used, and name them, instead of refusing to start."
    )

    @model_validator(mode="after")
    def _no_trigger_for_what_is_known(self) -> DatasetSection:
        if self.regularisation is not Regularisation.NONE and self.trigger_word:
            raise ValueError("a regularisation dataset has no `trigger_word`: it is what the trigger must not call")
        return self


class MergedAdapter(Section):
    """An adapter that is merged into the base model before training."""

    path: Path = Field(
        description="A LoRA file of any kind and layout that was made for this base model. A relative path starts at the "
        "recipe's folder."
    )
    strength: float = Field(1.0, ge=-10, le=10, description="Strength at which it is merged.")


class AdapterSection(Section):
    """What is trained."""

    kind: AdapterKind = Field(
        AdapterKind.LORA,
        description="`lora`; `rslora`, whose scale is alpha / sqrt(rank), for high ranks; `dora`, which learns the length "
        "of each row of the weights beside a LoRA; `loha` and `lokr`, a Hadamard and a Kronecker product, for small files; "
        "`oft`, which turns the weights in blocks of up to `rank` rows and so keeps their lengths. diffusers reads a `dora` "
        "in its own layout alone and the last three not at all.",
    )
    rank: int = Field(16, ge=1, le=1024, description="Rank of the update matrices; for `oft` the side of its blocks.")
    alpha: float | None = Field(
        None, gt=0, description="Scale numerator: updates are scaled by alpha / rank. Default: rank. `oft` has none."
    )
    factor: int | None = Field(
        None,
        ge=2,
        le=1024,
        description="With `lokr`: the size of the first Kronecker factor, a divisor near it being taken; larger trains more "
        "weights. Default: as square as it goes, which gives the smallest file.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Dropout on the adapter's input, for `lora`, `rslora` and `dora`."
    )
    targets: Targets | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        Targets.ATTENTION_FEED_FORWARD,
        description="Which linear layers get an adapter: `attention`, `attention+feed-forward`, or `all` of a block; "
        "`style` or `character`, the few layers that learn mostly the one (SDXL, and FLUX.1 for characters); or a list of "
        'patterns of diffusers\' names of layers, as `["blocks.1?.attn1.*", "*.ffn.net.2"]`, where `*` is any text.',
    )
    text_encoders: bool = Field(
        False,
        description="Adapt the text encoders too, for base models whose encoders are small (SDXL's two CLIP models): a new "
        "word is learnt faster, and known words change sooner. Captions are then encoded in every step.",
    )
    continue_from: Path | None = Field(
        None, description="A LoRA file to start from; its kind, rank and targets must match."
    )
    merged: list[MergedAdapter] = Field(
        [],
        description="Adapters that are merged into the base model before training and left out of the result. Previews are "
        "drawn with them, since the new LoRA is meant to be used together with them.",
    )
    ema_decay: Decay = Field(
        0.0,
        description="Evaluate, preview and save an exponential moving average of the adapter's weights, of which each step "
        "keeps this share (0.99 averages about the last hundred steps); 0 uses the weights as they are.",
    )

    @model_validator(mode="after")
    def _what_the_kind_has(self) -> AdapterSection:
        if self.kind is AdapterKind.OFT and self.alpha is not None:
            raise ValueError("`oft` has no scale; leave `alpha` out")
        if self.factor is not None and self.kind is not AdapterKind.LOKR:
            raise ValueError("`factor` is for `lokr`; leave it out")
        return self


class OptimizerSection(Section):
    """How the adapter's weights are updated."""

    kind: OptimizerKind = Field(OptimizerKind.ADAMW, description="The optimizer.")
    learning_rate: float = Field(1e-4, gt=0, lt=10, description="Peak learning rate; 1.0 for `prodigy`.")
    text_encoder_rate: float = Field(
        0.5, gt=0, le=10, description="With `adapter.text_encoders`: their learning rate as a share of `learning_rate`."
    )
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    betas: tuple[Decay, Decay] = Field((0.9, 0.99), description="Decay rates of the moments.")
    schedule: ScheduleKind = Field(ScheduleKind.CONSTANT, description="Learning rate after the warm-up.")
    warmup_steps: int = Field(20, ge=0, le=_MOST, description="Steps over which the learning rate rises from zero.")
    clip_norm: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0 does not clip.")


class TrainingSection(Section):
    """How long and in what portions."""

    steps: int | None = Field(
        None,
        ge=1,
        le=_MOST,
        description="Optimizer steps, of each expert where a base model has two. Give this or `epochs`.",
    )
    epochs: int | None = Field(None, ge=1, le=_MOST, description="Passes over the datasets. Give this or `steps`.")
    batch_size: int = Field(1, ge=1, le=1024, description="Items a forward pass.")
    accumulation: int = Field(1, ge=1, le=100_000, description="Forward passes an optimizer step.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of everything random.")
    precision: Precision = Field(Precision.BF16, description="Type of the base model's weights and of the arithmetic.")
    timestep_sampling: TimestepSampling = Field(
        TimestepSampling.LOGIT_NORMAL, description="Distribution from which the noise level is drawn before the shift."
    )
    timestep_mean: float = Field(
        0.0, ge=-10, le=10, description="With `logit-normal`: mean of the normal; below 0 favours little noise."
    )
    timestep_std: float = Field(
        1.0, gt=0, le=10, description="With `logit-normal`: deviation of the normal; smaller keeps to the middle."
    )
    timestep_scale: float = Field(
        1.29,
        ge=-1,
        le=1.75,
        description="With `mode`: how far the middle (above 0) or the ends (below 0) are favoured.",
    )
    lowest_noise: Share = Field(
        0.0, description="Train at no lower noise level than this, 0 being a clean picture: details are learnt below."
    )
    highest_noise: Share = Field(
        1.0, description="Train at no higher noise level than this, 1 being pure noise: composition is learnt above."
    )
    timestep_shift: float = Field(1.0, gt=0, le=100, description="s' = k s / (1 + (k - 1) s); above 1 favours noise.")
    resolution_shift: bool = Field(
        False,
        description="Shift by the size of the picture too, as the base model's own sampler does: larger pictures get more "
        "noise (FLUX.1, Qwen-Image). `timestep_shift` then multiplies it.",
    )
    min_snr_gamma: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Weigh the loss of each noise level by Min-SNR with this gamma (SDXL; 5 is usual), so that the easy "
        "levels of little noise do not dominate; 0 weighs all alike.",
    )
    loss: LossKind = Field(
        LossKind.MSE,
        description="`mse`; `huber` and `smooth-l1` count large errors less, which keeps outliers of a dataset from "
        "dominating. Evaluation is always the plain mean square, so that curves can be compared.",
    )
    huber_c: float = Field(
        0.1,
        gt=0,
        le=10,
        description="With `huber` and `smooth-l1`: errors above it count linearly. At most 1 where a schedule falls to it.",
    )
    huber_schedule: HuberSchedule = Field(
        HuberSchedule.SNR,
        description="How that width falls from 1 at no noise to `huber_c` at pure noise: with the signal-to-noise ratio "
        "(`snr`) or `exponential`; `constant` stays at `huber_c`.",
    )
    loss_weighting: LossWeighting = Field(
        LossWeighting.NONE,
        description="How much the loss of each noise level counts: `sigma-sqrt` (1 / s², favours little noise) and `cosmap` "
        "(favours the middle) for flow-matching models; `debiased` (1 / square root of the signal-to-noise ratio) for SDXL.",
    )
    regularisation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.5,
        description="Share of regularisation items among the items of an epoch, where a dataset is one. Where there are "
        "more of them than that, each epoch takes others.",
    )
    first_frame_share: Share = Field(
        0.0,
        description="For base models that may be given the first frame (Wan 2.2 TI2V 5B): the share of steps at which a "
        "clip's is given, and only the rest learnt. 0 trains text to clip alone.",
    )
    gradient_checkpointing: Checkpointing = Field(
        Checkpointing.AUTO,
        description="Compute activations again in the backward pass in place of keeping them: `full` takes the least memory "
        "and a third more time, `selective` keeps the outputs of attention, `off` keeps everything. `auto` takes the "
        "fastest that the GPU's memory allows. `true` and `false` mean `full` and `off`.",
    )
    gpus: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto",
        description="GPUs that a step's batches are split over. The batches stay the same ones, so that more GPUs make the "
        "same LoRA in less time: `auto` takes as many as divide `batch_size` (or, with smaller batches, `accumulation`) "
        "evenly. A number on a machine without a GPU is a number of processes.",
    )
    swap_blocks: Literal["auto"] | Annotated[int, Field(ge=0, le=1000)] = Field(
        "auto",
        description="Blocks of the base model whose weights wait in the machine's memory and are copied to the GPU when it "
        "is their turn: slow where a step is short, hardly slower where it is long. `auto` swaps where nothing else helps.",
    )
    shard_base: Literal["auto"] | bool = Field(
        "auto",
        description="With several GPUs: each holds its share of the base model's blocks, and they put a block together when "
        "it is its turn. This alone changes no result; a step needs fast ways between the GPUs, as NVLink. `auto` does so "
        "where a base model that is rounded to 8 bits does not fit.",
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="GPU memory that `auto` plans with, in 1e9 bytes. Default: what is free when training starts.",
    )
    attention: Attention = Field(
        Attention.AUTO,
        description="Kernels that compute attention, where they can: `cudnn`, `flash` (FlashAttention-2), `efficient` or "
        "`math` (slow); `torch` takes torch's own order. `auto` is `cudnn` on GPUs from Hopper on, where it works, and "
        "`torch` elsewhere. They differ in speed, and in rounding.",
    )
    compile: Literal["auto"] | bool = Field(
        False,
        description="Compile the base model's blocks for each size in the buckets: faster steps after a wait of up to "
        "minutes before the first of a size. `auto` does so on CUDA; where it fails, training goes on without and says so.",
    )

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        return {"True": Checkpointing.FULL, "False": Checkpointing.OFF}.get(str(value).title(), value)

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSection:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("both `steps` and `epochs` are given; leave one out")
        if self.lowest_noise >= self.highest_noise:
            raise ValueError("`lowest_noise` must be below `highest_noise`")
        defaults = TrainingSection.model_fields
        robust = {key: defaults[key].default for key in ("huber_c", "huber_schedule")}
        given = next((key for key, default in robust.items() if getattr(self, key) != default), None)
        if self.loss is LossKind.MSE and given:
            raise ValueError(f"`{given}` is for the losses `huber` and `smooth-l1`: set `loss`, or leave it out")
        if self.huber_c > 1 and self.huber_schedule is not HuberSchedule.CONSTANT:
            raise ValueError(
                "`huber_c` is what the width falls to from 1: set it to 1 or less, or `huber_schedule` to constant"
            )
        if self.shard_base is True and self.swap_blocks not in ("auto", 0):
            raise ValueError(
                "blocks that are split over GPUs cannot wait in the machine's memory: leave `swap_blocks` out"
            )
        return self


class EvaluationSection(Section):
    """Loss on held-out items at fixed noise and fixed timesteps, comparable between runs."""

    every: int = Field(
        100, ge=0, le=_MOST, description="Steps between evaluations; 0 evaluates only before and after training."
    )
    quantiles: int = Field(4, ge=1, le=32, description="Fixed noise levels at which each held-out item is evaluated.")
    max_items: int = Field(32, ge=1, le=_MOST, description="At most so many held-out items of each dataset.")


class PreviewSection(Section):
    """Pictures or clips sampled while training."""

    prompts: list[str] = Field([], description="What to draw. Empty: the first captions of the first dataset.")
    negative_prompt: str = Field("", description="What guidance leads away from.")
    every: int = Field(
        250, ge=0, le=_MOST, description="Steps between previews; 0 previews only before and after training."
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = Field(
        [1], min_length=1, description="A picture of each prompt a seed."
    )
    width: int = Field(1024, ge=64, le=4096, description="Pixels.")
    height: int = Field(1024, ge=64, le=4096, description="Pixels.")
    frames: int = Field(
        1,
        ge=1,
        le=1024,
        description="Frames of a preview, at the base model's own frame rate; 1 draws pictures. Clips are written as MP4, "
        "with a strip of their frames as PNG beside it.",
    )
    first_frames: list[Path] = Field(
        [],
        description="Pictures that previews begin with, taken in turn by the prompts, for base models that make a clip out "
        "of a picture. Empty: the first frames of clips that are trained on. A relative path starts at the recipe's folder.",
    )
    control: list[Path] = Field(
        [],
        description="Control pictures that previews start from, taken in turn by the prompts, for base models that edit. "
        "Empty: those of the items that are trained on, of the item with that caption or in turn. They are cut to the "
        "previews' size. A relative path starts at the recipe's folder.",
    )
    steps: int = Field(20, ge=1, le=200, description="Sampling steps.")
    guidance: float = Field(4.0, ge=0, le=50, description="Classifier-free guidance; 0 is off.")
    at_start: bool = Field(True, description="Sample the base model before the first step, for comparison.")
    at_end: bool = Field(True, description="Sample after the last step.")


class SavingSection(Section):
    """What is written, and when."""

    checkpoint_every: int = Field(
        250, ge=0, le=_MOST, description="Steps between checkpoints; 0 writes one only at the end or when stopped."
    )
    keep_checkpoints: int = Field(2, ge=1, le=_MOST, description="How many of the newest checkpoints are kept.")
    lora_every: int = Field(0, ge=0, le=_MOST, description="Steps between LoRA files; 0 writes one only at the end.")
    formats: list[LoraFormat] = Field([LoraFormat.COMFYUI], min_length=1, description="Key layouts to write.")
    precision: Precision = Field(Precision.BF16, description="Type of the tensors in the LoRA file.")


class Recipe(Section):
    """All of a training."""

    name: str = Field(description="Name of the LoRA and of the run's folder.", min_length=1, max_length=100)
    trainer: TrainerName = Field(TrainerName.BUILTIN, description="What trains.")
    notes: str = Field("", description="Free text, kept in the run and in the LoRA's metadata.")
    base_model: BaseModelSection
    datasets: list[DatasetSection] = Field(min_length=1)
    adapter: AdapterSection = AdapterSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    previews: PreviewSection = PreviewSection()
    saving: SavingSection = SavingSection()
    trainer_options: dict[TrainerName, dict[str, Any]] = Field(
        {},
        description="Options of an external trainer in its own words, as `[trainer_options.diffusion-pipe]` or "
        "`[trainer_options.musubi.train]`, which go over what lorapod writes for it. They are checked against what the "
        "trainer reads; those of other trainers than the chosen one are kept and do nothing.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, value: str) -> str:
        if value in (".", "..") or any(c in value for c in '/\\\0\n:*?"<>|') or value != value.strip():
            raise ValueError('it becomes a file name, so it must not hold / \\ : * ? " < > | or outer spaces')
        if len(value.encode()) > 200:
            raise ValueError("it becomes a file name, so it must not be longer than 200 bytes")
        return value

    @property
    def alpha(self) -> float:
        """The adapter's alpha; the rank where none is given."""
        return self.adapter.alpha if self.adapter.alpha is not None else float(self.adapter.rank)
