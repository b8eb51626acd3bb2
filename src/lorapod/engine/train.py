"""The training loop: read it as the recipe it is.

Everything drawn at a step follows from (seed, step); see `engine.noise`. So the loop only has to know which step comes
next, and a run that was killed and resumed gives the same LoRA, byte for byte, on the same machine. That is tested on
the CPU; on a GPU it holds as far as its kernels are deterministic (some attention backward passes are not).
"""

from __future__ import annotations

import hashlib
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorapod import recipe as recipes
from lorapod.engine import adapters
from lorapod.engine.adapter_files import ENCODERS, Merged
from lorapod.engine.attention import attention_of
from lorapod.engine.averages import Average
from lorapod.engine.batches import Batches
from lorapod.engine.blocks import Keeping
from lorapod.engine.checkpoint import Place, checkpoints_in, load_checkpoint, read_place, save_checkpoint
from lorapod.engine.checkpointing import enable_checkpointing
from lorapod.engine.compiling import CompiledBlocks, wants_compiling
from lorapod.engine.evaluate import Evaluation
from lorapod.engine.experts import (
    adapter_copy,
    drop_frozen,
    file_for,
    free_memory,
    lent,
    loading,
    merge_adapters,
    sample_in_turns,
    take_frozen,
)
from lorapod.engine.export import write_lora
from lorapod.engine.families import Expert
from lorapod.engine.job import Job
from lorapod.engine.memory import MemoryPlanner, off_the_estimate
from lorapod.engine.optimizers import build_optimizer, rate_at, weights_for_use
from lorapod.engine.output import emit
from lorapod.engine.previews import Previews
from lorapod.engine.ranks import Ranks
from lorapod.engine.step import optimizer_step
from lorapod.engine.streaming import stream
from lorapod.engine.text_encoders import attach, trains_with_encoders
from lorapod.errors import DiskError, NonFiniteLossError
from lorapod.files import sha256_of
from lorapod.recipe.choices import Precision

_SETTLED = 5
"""Steps after which the peak of memory has been seen, of sizes that came so far."""

_CHECKPOINT_BYTES = 12
"""Of a trained weight: itself and Adam's two moments in float32."""

REPORT_SECONDS = 0.25
REPORT_SECONDS_ON_GPU = 1.0
"""Steps are reported together that take less than this: reading the loss waits for the GPU, and on a CPU each report wakes
the supervisor on a core that the arithmetic wants."""


class Training:
    """One training: the state that the loop moves forward, and what is done between steps."""

    def __init__(self, job: Job, ranks: Ranks | None = None) -> None:
        self.job = job
        self.ranks = ranks or Ranks()
        self.recipe = job.recipe
        self.batches = Batches(job)
        self.total = self.batches.total_steps
        self.previews = Previews(job)
        self.memory = MemoryPlanner(job, job.data.train, self.ranks).plan()
        self.ranks.in_step = self.memory.keeping.shards > 1
        self.digest = self._digest()
        self.step = 0
        self.saved_step = -1
        self.finished: dict[str, dict[str, Tensor]] = {}

    def begin(self, expert: Expert) -> None:
        """Loads an expert (a base model's only denoiser, mostly) with a fresh adapter and optimizer."""
        job, recipe = self.job, self.recipe
        self.expert = expert
        with loading(self.memory.keeping, self.ranks):
            self.denoiser = load_denoiser(job, expert, self.memory.keeping)
            enable_checkpointing(self.denoiser, self.memory.checkpointing)
            if trains_with_encoders(job):
                attach(self.denoiser, job)
            self.merge_adapters(job.merged_adapters)
            section = recipe.adapter
            adapters.add_adapter(self.denoiser, job.family, section, recipe.alpha, recipe.training.seed, job.device)
            if section.continue_from:
                file = file_for(expert, job.experts, section.continue_from)
                adapters.continue_from(self.denoiser, job.family, file)
            self.compiled = None
            if wants_compiling(recipe.training.compile, job.device):
                self.compiled = CompiledBlocks(self.denoiser, job.workspace.cache / "compiled")
            self.streamed = stream(self.denoiser, self.memory.keeping, job.device, self.ranks)
        self.parameters = adapters.adapter_parameters(self.denoiser)
        self.average = Average(adapters.adapter_tensors(self.denoiser), recipe.adapter.ema_decay)
        trained = [(name, p) for name, p in self.denoiser.named_parameters() if p.requires_grad]
        encoders = [p for name, p in trained if name.startswith(ENCODERS)]
        others = [p for name, p in trained if not name.startswith(ENCODERS)]
        self.optimizer = build_optimizer(recipe.optimizer, others, encoders)
        self.evaluation = Evaluation(job, self.batches, expert, self.ranks)

    @property
    def first_step(self) -> int:
        """Steps that were done before the present expert's first."""
        return self.job.experts.index(self.expert) * self.batches.steps_of_expert

    @property
    def last_step(self) -> int:
        """Steps that are done when the present expert is finished."""
        return self.first_step + self.batches.steps_of_expert

    def run(self, resume: bool, stopped: Callable[[], bool]) -> bool:
        """Trains to the end, or until `stopped` says so.

        Returns:
            Whether the training is finished.

        Raises:
            NonFiniteLossError: The loss became NaN or infinite; the last checkpoint is good.
            CheckpointError: The checkpoint is damaged or of another recipe.
            DiskError: No space.
            RequestError: The recipe names attention kernels that are not here.
        """
        emit("stage", name="train", index=3, count=3, total=self.total)
        with attention_of(self.job):
            return self._run(resume, stopped)

    def _run(self, resume: bool, stopped: Callable[[], bool]) -> bool:
        if not (resume and self.restore()):
            self.begin(self.job.experts[0])
        if self.ranks.speaks:
            self.check_space()
        while self.train_expert(stopped):
            self.finish()
            if self.step == self.total:
                return True
            with self.weights_for_use():
                self.finished[self.expert.suffix] = adapter_copy(self.denoiser)
            following = self.job.experts[self.job.experts.index(self.expert) + 1]
            if self.streamed:
                self.streamed.let_go()
            del (
                self.denoiser,
                self.compiled,
                self.streamed,
                self.optimizer,
                self.parameters,
                self.average,
                self.evaluation,
            )
            free_memory()
            self.begin(following)
        return False

    def train_expert(self, stopped: Callable[[], bool]) -> bool:
        """Trains the present expert to its end; returns False if `stopped` came before it."""
        if self.step == self.first_step:
            self.evaluate()
            if self.step == 0 and self.recipe.previews.at_start:
                self.preview()
        accumulation, started = self.recipe.training.accumulation, self.step
        upcoming = self.batches.from_number(self.step * accumulation, (self.last_step - self.step) * accumulation)
        self.denoiser.train()
        pending: list[Tensor] = []
        rate = 0.0
        began = time.perf_counter()
        report_after = REPORT_SECONDS_ON_GPU if self.job.device.type == "cuda" else REPORT_SECONDS
        while self.step < self.last_step:
            if self.ranks.agreed_to_stop(stopped):
                if pending:
                    self.report(pending, rate, (time.perf_counter() - began) / (len(pending) // accumulation))
                self.checkpoint()
                return False
            rate = rate_at(self.recipe.optimizer, self.step - self.first_step, self.batches.steps_of_expert)
            pending += optimizer_step(
                self.job,
                self.denoiser,
                self.optimizer,
                self.parameters,
                upcoming,
                rate,
                self.step,
                self.compiled,
                self.ranks,
                stopped(),
            )
            if self.streamed:
                self.streamed.rest()
            self.step += 1
            self.average.update(self.step - self.first_step)
            spent = time.perf_counter() - began
            if self.step - started == _SETTLED and (said := off_the_estimate(self.memory, peak_bytes(self.job.device))):
                emit("info", message=said)
            if spent >= report_after or self.step in (1, self.last_step) or self.is_due():
                self.report(pending, rate, spent * accumulation / len(pending))
                pending = []
                self.between_steps()
                began = time.perf_counter()
        return True

    def is_due(self) -> bool:
        """Whether something is done after this step."""
        return any(every and self.step % every == 0 for every in self._intervals())

    def merge_adapters(self, merged: Sequence[Merged], undo: Sequence[Merged] = ()) -> None:
        """Merges adapters into the frozen weights, in place of those of `undo`."""
        merge_adapters(self.job, self.denoiser, self.expert, merged, undo, self.memory.keeping)

    @contextmanager
    def base_for_previews(self) -> Iterator[None]:
        """The base model as the LoRA will be used on it inside the block: without a training adapter.

        Its layers are read again from disk, and merged again afterwards, since subtracting would round in bf16.
        """
        merged = self.job.merged_adapters
        if all(each.in_previews for each in merged):
            yield
            return
        self.exchange_merged([each for each in merged if each.in_previews], undo=merged)
        try:
            yield
        finally:
            self.exchange_merged(merged, undo=merged)

    def exchange_merged(self, merged: Sequence[Merged], undo: Sequence[Merged]) -> None:
        """Has `merged` in the frozen weights in place of `undo`."""
        if not self.ranks.in_step:
            self.merge_adapters(merged, undo)
            return
        drop_frozen(self.denoiser, self.streamed)
        self.load_base_again(merged)

    def load_base_again(self, merged: Sequence[Merged]) -> None:
        """Reads the frozen weights, that were dropped, from disk and merges adapters into them."""
        with loading(self.memory.keeping, self.ranks):
            take_frozen(self.denoiser, load_denoiser(self.job, self.expert, self.memory.keeping))
            self.merge_adapters(merged)
            if self.streamed:
                self.streamed.adopt()

    @contextmanager
    def weights_for_use(self) -> Iterator[None]:
        """The adapter as it is evaluated, previewed and saved inside the block: averaged, where the recipe says so."""
        with weights_for_use(self.optimizer), self.average.in_use():
            yield

    def _intervals(self) -> tuple[int, ...]:
        r = self.recipe
        return (r.evaluation.every, r.previews.every, r.saving.checkpoint_every, r.saving.lora_every)

    def between_steps(self) -> None:
        """Evaluates, previews and saves when it is time; the end does all of it once more anyway."""
        if self.step == self.last_step:
            return
        evaluation, preview, checkpoint, lora = (bool(e) and self.step % e == 0 for e in self._intervals())
        if checkpoint:
            self.checkpoint()
        if evaluation:
            self.evaluate()
        if lora:
            self.save_lora(final=False)
        if preview:
            self.preview()

    def finish(self) -> None:
        """The last checkpoint, evaluation and LoRA of the present expert, and the run's last previews."""
        self.checkpoint()
        self.evaluate()
        self.save_lora(final=True)
        if self.step == self.total and self.recipe.previews.at_end:
            self.preview()

    def report(self, losses: list[Tensor], rate: float, seconds: float) -> None:
        """Prints the `step` event. Of several ranks one looks: each does so at times of its own, and all have the same loss.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite.
        """
        if not self.ranks.speaks:
            return
        loss = torch.stack(losses).mean().item()
        if not math.isfinite(loss):
            raise self._not_finite(f"The loss became {loss} at step {self.step}")
        epoch = self.batches.epoch_of(self.step * self.recipe.training.accumulation - 1) + 1
        emit(
            "step",
            step=self.step,
            total=self.total,
            epoch=epoch,
            loss=round(loss, 6),
            lr=rate,
            seconds=round(seconds, 4),
            memory_gb=memory_gb(self.job.device),
        )

    def check_space(self) -> None:
        """Refuses now what would fail at the first checkpoint.

        Raises:
            DiskError: There is no room for one checkpoint, the one that takes its place, and a LoRA.
        """
        trained = sum(parameter.numel() for parameter in self.parameters)
        files = self.recipe.saving
        lora = trained * (4 if files.precision is Precision.FP32 else 2) * len(files.formats)
        needed = 2 * trained * _CHECKPOINT_BYTES + lora
        free = shutil.disk_usage(self.job.folder).free
        if free < needed:
            raise DiskError(
                f"{self.job.folder} has {free / 1e6:.0f} MB free, and this training writes {needed / 1e6:.0f} MB",
                "That is a checkpoint, the one that replaces it, and the LoRA; previews come on top.",
                "Free some space (old runs and their checkpoints are the largest), then run the same command with --resume.",
            )

    def check_weights(self) -> None:
        """Refuses to save an adapter that is broken.

        Raises:
            NonFiniteLossError: A weight is NaN or infinite.
        """
        if not all(parameter.isfinite().all() for parameter in self.parameters):
            raise self._not_finite(f"The adapter's weights became NaN or infinite by step {self.step}")

    def _not_finite(self, what: str) -> NonFiniteLossError:
        kept = checkpoints_in(self.job.folder / "checkpoints")
        return NonFiniteLossError(
            what,
            "The learning rate is too high for this recipe, or the precision too low."
            + (f" The last good checkpoint is {kept[-1].name}." if kept else ""),
            f"Set `optimizer.learning_rate` to {self.recipe.optimizer.learning_rate / 4:g}"
            ' (or `training.precision = "fp32"`) and start again.',
        )

    def _digest(self) -> str:
        """Of all that shapes the result: recipe, base model with what is merged into it, and the bytes, captions and crops
        of the data."""
        items = [
            (
                self.job.latents_key(i),
                i.captions,
                i.repeats,
                i.caption_dropout,
                *filter(None, [self.job.mask_key(i)]),
                *map(self.job.control_key, self.job.controls(i)),
            )
            for i in self.job.data.train
        ]
        weights = [self.job.base.fingerprint(expert.component) for expert in self.job.experts]
        weights += [sha256_of(merged.path) for merged in self.job.merged_adapters]
        return hashlib.sha256(repr([recipes.digest(self.recipe), weights, items]).encode()).hexdigest()

    def evaluate(self) -> None:
        with self.weights_for_use():
            for name, loss in self.evaluation.run(self.denoiser).items():
                apart = {"regularisation": True} if name in self.evaluation.regularising else {}
                when = {self.first_step: {"when": "before"}, self.last_step: {"when": "after"}}.get(self.step, {})
                emit("eval", step=self.step, loss=round(loss, 6), dataset=name, **when, **apart)

    def preview(self) -> None:
        """Draws, which ranks in step do together; one of them writes."""
        if not self.previews.pairs or not (self.ranks.speaks or self.ranks.in_step):
            return
        with self.weights_for_use(), self.base_for_previews():
            if len(self.job.family.experts) == 1:
                latents = self.previews.latents(self.denoiser, self.previews.pairs)
            else:
                latents = sample_in_turns(self.job, self.previews, self.turn)
            if self.ranks.speaks:
                self.previews.write(latents, self.step)

    @contextmanager
    def turn(self, expert: Expert) -> Iterator[nn.Module]:
        """The denoiser of an expert while it draws; the one that trains is out of memory while another does."""
        if expert == self.expert:
            yield self.denoiser
            return
        drop_frozen(self.denoiser, self.streamed)
        try:
            adapter = self.finished.get(expert.suffix)
            with lent(self.job, expert, adapter, self.memory.keeping, self.ranks) as denoiser:
                yield denoiser
        finally:
            self.load_base_again([each for each in self.job.merged_adapters if each.in_previews])

    def save_lora(self, final: bool) -> None:
        if not self.ranks.speaks:
            return
        folder = self.job.folder / "lora"
        items = len({item.item.path for item in self.job.data.train})
        self.check_weights()
        with self.weights_for_use():
            written = write_lora(
                folder,
                self.denoiser,
                self.job.family,
                self.job.base,
                self.expert,
                self.recipe,
                step=self.step - self.first_step,
                final=final,
                items=items,
            )
        for path, format in written:
            relative = str(path.relative_to(self.job.folder))
            of = {"expert": self.expert.suffix.removeprefix("-")} if self.expert.suffix else {}
            emit("lora", step=self.step, path=relative, format=format.value, base_model=self.job.base.name, **of)

    def checkpoint(self) -> None:
        if self.saved_step == self.step or self.step == 0 or not self.ranks.speaks:
            return
        self.check_weights()
        place = Place(self.step, self.digest, self.finished)
        folder, keep = self.job.folder / "checkpoints", self.recipe.saving.keep_checkpoints
        path = save_checkpoint(folder, place, self.denoiser, self.optimizer, self.average, keep)
        self.saved_step = self.step
        emit("checkpoint", step=self.step, path=str(path.relative_to(self.job.folder)))

    def restore(self) -> bool:
        """Goes on from the newest checkpoint; False where there is none."""
        kept = checkpoints_in(self.job.folder / "checkpoints")
        if not kept:
            emit("info", message="There is no checkpoint yet; training starts at the first step.")
            return False
        done = max(0, read_place(kept[-1]).step - 1) // self.batches.steps_of_expert
        self.begin(self.job.experts[min(done, len(self.job.experts) - 1)])
        place = load_checkpoint(kept[-1], self.digest, self.denoiser, self.optimizer, self.average)
        self.step, self.finished = place.step, place.finished
        self.saved_step = self.step
        emit("info", message=f"Going on from step {self.step} of {self.total}.")
        return True


def load_denoiser(job: Job, expert: Expert, keeping: Keeping) -> nn.Module:
    """A frozen denoiser as it is on disk, held as `keeping` says."""
    return job.family.load_denoiser(job.base, expert, job.device, job.dtype, keeping)


def memory_gb(device: torch.device) -> float:
    """Peak memory in 1e9 bytes: of the GPU, or of this process where there is none."""
    return round(peak_bytes(device) / 1e9, 2)


def peak_bytes(device: torch.device) -> int:
    """Likewise in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
