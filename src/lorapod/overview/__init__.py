"""Everything that matters about this machine and this workspace, gathered for one screen, and what is off with it."""

from lorapod.overview.diagnose import examine
from lorapod.overview.gather import BaseModelState, CaptionerState, Overview, RunState, TrainerState, gather

__all__ = ["BaseModelState", "CaptionerState", "Overview", "RunState", "TrainerState", "examine", "gather"]
