"""What the session knows of this machine and workspace, and one plain sentence about what it is good for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorapod.captioning.registry import KNOWN, lacks
from lorapod.errors import RequestError
from lorapod.machine import Finding, Gpus, Severity
from lorapod.models.catalogue import Entry, entries
from lorapod.models.memory import GIB
from lorapod.models.upkeep import trainers_on_disk
from lorapod.overview import Overview, examine, gather
from lorapod.settings import adopt_aliases, environment_of
from lorapod.start.data import Contents, found_in
from lorapod.start.fits import fit_of
from lorapod.workspace import Workspace

GB = 1_000_000_000
_EXPERTS = ("-high", "-low")


@dataclass
class Facts:
    """What is known before anything is asked.

    Attributes:
        entries: Base models by name.
        here: Base model to the trainers whose files of it are on disk.
        trainers: Name to whether it can be started.
        environment: Environment variables, over those of the workspace's `.env`; keys that are given are put here too.
        found: The workspace's dataset folders that hold media.
        faults: What keeps training from working.
    """

    workspace: Workspace
    gpus: Gpus
    entries: Mapping[str, Entry]
    here: Mapping[str, list[str]] = field(default_factory=dict)
    trainers: Mapping[str, bool] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    found: list[Contents] = field(default_factory=list)
    disk_free: int = 0
    processors: float = 1.0
    faults: tuple[Finding, ...] = ()

    @property
    def gpu_gb(self) -> float:
        """Memory of the largest GPU in GB (2^30 bytes); 0 where there is none that can be used."""
        largest = self.gpus.largest
        return (largest.memory_total or 0) / GIB if largest and not self.gpus.hidden else 0.0

    def entry(self, name: str) -> Entry:
        """The base model of that name.

        Raises:
            RequestError: There is none.
        """
        if name not in self.entries:
            near = difflib.get_close_matches(name, self.entries, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(
                f"There is no base model {name}{meant}", "", "`lorapod models list` shows which there are."
            )
        return self.entries[name]

    def offered(self) -> list[Entry]:
        """The base models to choose from: pictures' first, small ones first, a pair's experts only as the pair."""
        shown = [each for each in self.entries.values() if each.packaged or each.trainers]
        # What must have control pictures is left out, since nothing here asks for them.
        shown = [each for each in shown if not each.name.endswith(_EXPERTS) and each.control != "needed"]
        return sorted(
            shown, key=lambda each: (bool(each.packaged), each.modality == "clip", each.parameters or 0, each.name)
        )

    def captioner_lacks(self, name: str) -> list[str]:
        """What a captioner needs and does not find; [] where it can be used."""
        return lacks(name, self.environment, self.gpu_gb) if name in KNOWN else []

    def captioner_gigabytes(self, name: str) -> float:
        """About how many GB (10^9 bytes) a captioner fetches before it writes; 0 for nothing."""
        from lorapod.captioning.downloads import gigabytes_to_fetch

        return gigabytes_to_fetch(name, self.gpu_gb, self.workspace.models)

    def fetch_bytes(self, entry: Entry, trainer: str | None) -> float:
        """Bytes that are to be fetched for a trainer, as the catalogue knows them; 0 where it is here."""
        if entry.packaged or (trainer or first_trainer(entry)) in self.here.get(entry.name, []):
            return 0.0
        return sum((spec.gigabytes or 0.0) for spec in entry.files_for(trainer or first_trainer(entry))) * GB


def first_trainer(entry: Entry) -> str | None:
    """The trainer that is taken where nobody chose: the built-in one where it can, else the first that can."""
    return "builtin" if "builtin" in entry.trainers or not entry.trainers else next(iter(entry.trainers))


def look(workspace: Workspace) -> Facts:
    """Looks at machine and workspace.

    Raises:
        RequestError: Others may read the keys in the workspace's `.env`.
        BaseModelError: An entry of the workspace's own cannot be read.
    """
    overview = gather(workspace)
    known = entries(workspace)
    environment = environment_of(workspace.root)
    adopt_aliases(environment)
    return Facts(
        workspace,
        overview.gpus,
        known,
        here={name: there for name, entry in known.items() if (there := trainers_on_disk(entry, workspace))},
        trainers={each.name: each.installed for each in overview.trainers},
        environment=environment,
        found=found_in(workspace),
        disk_free=overview.disk.free,
        processors=overview.host.cpus,
        faults=_faults(overview),
    )


def _faults(overview: Overview) -> tuple[Finding, ...]:
    """What is to be said before the first question; that there is no GPU, the session says in its own words."""
    found = [one for one in examine(overview) if one.severity is Severity.FAULT]
    abouts = ("workspace", "disk", "memory", *(("gpu",) if overview.gpus.largest else ()))
    found += [one for one in examine(overview) if one.severity is Severity.WARNING and one.about in abouts]
    return tuple(found)


def machine_sentence(facts: Facts) -> str:
    """What this machine is good for, in plain words."""
    largest = facts.gpus.largest
    if largest is None or facts.gpus.hidden:
        hidden = " that may be used (CUDA_VISIBLE_DEVICES hides it)" if facts.gpus.hidden and largest else ""
        return (
            f"This machine has no GPU{hidden}. It trains the demo model, a tiny one that shows in minutes how everything "
            "goes; for a LoRA that is of use, run lorapod on a machine with a GPU of 16 GB or more."
        )
    name = largest.name.removeprefix("NVIDIA ").removeprefix("GeForce ")
    memory = f" with {facts.gpu_gb:.0f} GB" if largest.memory_total else ", which shares the machine's memory"
    more = f" (and {len(facts.gpus.found) - 1} more GPUs; one is used)" if len(facts.gpus.found) > 1 else ""
    begin = f"This machine's GPU: {name}{memory}{more}."
    real = [each for each in facts.offered() if not each.packaged]
    fits = {each.title: fit_of(each, facts.gpus) for each in real}
    good = [title for title, fit in fits.items() if not fit.why_not and not fit.means]
    tight = [title for title, fit in fits.items() if fit.means]
    short = [title for title, fit in fits.items() if fit.why_not]
    if not good and not tight:
        return f"{begin} That is too small for every base model but the demo's."
    if not tight and not short:
        return f"{begin} It trains every base model that lorapod knows."
    said = [f"It trains {_listed(good)}." if good else ""]
    said += [f"By rounding their weights, slower and a little less exact: {_listed(tight)}." if tight else ""]
    said += [f"Too large for it: {_listed(short)}." if short else ""]
    return " ".join([begin, *filter(None, said)])


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def process_environment(facts: Facts) -> None:
    """Gives keys of the workspace's `.env`, and those given in the session, to this process and what it starts."""
    from lorapod.settings import KEYS

    for key in KEYS:
        value = facts.environment.get(key.name, "").strip()
        if value:
            os.environ.setdefault(key.name, value)
