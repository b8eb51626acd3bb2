"""What the recipe's keys choose among."""

from __future__ import annotations

from enum import StrEnum


class TrainerName(StrEnum):
    BUILTIN = "builtin"
    DIFFUSION_PIPE = "diffusion-pipe"
    MUSUBI = "musubi"


class AdapterKind(StrEnum):
    LORA = "lora"
    RSLORA = "rslora"
    DORA = "dora"
    LOKR = "lokr"
    LOHA = "loha"
    OFT = "oft"


class Targets(StrEnum):
    ATTENTION = "attention"
    ATTENTION_FEED_FORWARD = "attention+feed-forward"
    ALL = "all"
    STYLE = "style"
    CHARACTER = "character"


class OptimizerKind(StrEnum):
    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    PRODIGY = "prodigy"
    ADAFACTOR = "adafactor"
    SCHEDULE_FREE = "schedule-free"


class ScheduleKind(StrEnum):
    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Precision(StrEnum):
    BF16 = "bf16"
    FP32 = "fp32"


class Quantization(StrEnum):
    """How the frozen weights of a base model are held."""

    AUTO = "auto"
    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


class Checkpointing(StrEnum):
    """What is computed again in the backward pass."""

    AUTO = "auto"
    OFF = "off"
    SELECTIVE = "selective"
    FULL = "full"


class Attention(StrEnum):
    """Kernels that compute attention, those that come first."""

    AUTO = "auto"
    TORCH = "torch"
    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


class TimestepSampling(StrEnum):
    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit-normal"
    MODE = "mode"


class LossKind(StrEnum):
    MSE = "mse"
    HUBER = "huber"
    SMOOTH_L1 = "smooth-l1"


class HuberSchedule(StrEnum):
    """How the width of a Huber loss follows the noise level."""

    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    SNR = "snr"


class LossWeighting(StrEnum):
    """How much each noise level's loss counts."""

    NONE = "none"
    SIGMA_SQRT = "sigma-sqrt"
    COSMAP = "cosmap"
    DEBIASED = "debiased"


class Regularisation(StrEnum):
    """What a dataset is there for beside the subject."""

    NONE = "none"
    LEARN = "learn"
    PRESERVE = "preserve"


class ClipWindows(StrEnum):
    """Which stretches of a clip become items."""

    HEAD = "head"
    MIDDLE = "middle"
    UNIFORM = "uniform"
    EVERY = "every"


class ExpertChoice(StrEnum):
    """Which denoiser of a base model that has two."""

    BOTH = "both"
    HIGH = "high"
    LOW = "low"


class LoraFormat(StrEnum):
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
