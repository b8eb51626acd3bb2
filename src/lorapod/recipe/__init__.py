"""The recipe: one TOML file that says all of a training."""

from lorapod.recipe import presets
from lorapod.recipe.choices import (
    AdapterKind,
    LoraFormat,
    OptimizerKind,
    Precision,
    ScheduleKind,
    Targets,
    TimestepSampling,
    TrainerName,
)
from lorapod.recipe.goals import Goal
from lorapod.recipe.load import load
from lorapod.recipe.reference import explained, reference_markdown
from lorapod.recipe.schema import (
    AdapterSection,
    BaseModelSection,
    DatasetSection,
    EvaluationSection,
    OptimizerSection,
    PreviewSection,
    Recipe,
    SavingSection,
    Section,
    TrainingSection,
)
from lorapod.recipe.starter import new
from lorapod.recipe.write import differences, digest, dumps

__all__ = [
    "AdapterKind",
    "AdapterSection",
    "BaseModelSection",
    "DatasetSection",
    "EvaluationSection",
    "Goal",
    "LoraFormat",
    "OptimizerKind",
    "OptimizerSection",
    "Precision",
    "PreviewSection",
    "Recipe",
    "SavingSection",
    "ScheduleKind",
    "Section",
    "Targets",
    "TimestepSampling",
    "TrainerName",
    "TrainingSection",
    "differences",
    "digest",
    "dumps",
    "explained",
    "load",
    "new",
    "presets",
    "reference_markdown",
]
