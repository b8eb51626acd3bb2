"""Runs: a recipe in, a finished LoRA out."""

from lorapod.runs.comparison import write_comparison
from lorapod.runs.control import newest_run_of, resume_run, start_run, stop_run
from lorapod.runs.folder import RunFolder, all_runs, find_run
from lorapod.runs.journal import RunState, Tail, read_events, state_of, step_text, supervisor_of
from lorapod.runs.pairs import Pair, has_two_experts, partner_of, start_pair
from lorapod.runs.store import RunRow, list_runs

__all__ = [
    "Pair",
    "RunFolder",
    "RunRow",
    "RunState",
    "Tail",
    "all_runs",
    "find_run",
    "has_two_experts",
    "list_runs",
    "newest_run_of",
    "partner_of",
    "read_events",
    "resume_run",
    "start_pair",
    "start_run",
    "state_of",
    "step_text",
    "stop_run",
    "supervisor_of",
    "write_comparison",
]
