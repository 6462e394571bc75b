"""Training, read from top to bottom: samples and a config in, a run directory out.

RUN/config.json        the resolved TrainConfig
RUN/run.json           versions, machine, sizes, and how it finished
RUN/steps.jsonl        a line a step: losses, learning rate
RUN/metrics.jsonl      a line an epoch: mean losses, validation metrics, seconds
RUN/tensorboard/       the same for TensorBoard
RUN/best.safetensors   the averaged weights of the best epoch; last.safetensors those of the last
RUN/state/             what resuming needs, while the run is unfinished
RUN/val_metrics.json   every metric of the best weights, at the end
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.annotations import is_absent
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import only_process, remove_leftovers, write_json
from sdst_runtime.grounding.decode import predict
from sdst_runtime.metrics.score import PRESENCE_AUROC, metric_names, score
from sdst_runtime.strict_json import dump_json, load_json, read_json

from ..config import TrainConfig, difference
from ..model.sdst import SDST
from ..model.torch_session import TorchSession
from .batches import RunBatches, load_batches, needed_layers
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .distributed import ALONE, Team
from .learner import Learner, rate_factor, reproducible, resolve_precision
from .log import RunLog
from .run_facts import start_facts
from .state import RunState, forget_states, load_state, save_state

# Fields that a resumed run may change; the annotations themselves are compared by their content.
FREE_TO_CHANGE = ("preset", "device", "compile", "deterministic", "workers", "save_every_steps", "data")


@dataclass(frozen=True)
class Progress:
    """State of a run after a step, for whoever shows it."""

    epoch: int  # from 1
    epochs: int
    step: int  # over the whole run, from 1
    steps: int
    losses: dict[str, float]  # of the step; the epoch's means on its last step
    metrics: dict[str, float] | None  # validation, on the last step of an epoch


@dataclass
class Best:
    """The best epoch so far by the selecting metric."""

    value: float = -1.0
    epoch: int = 0


def train(
    config: TrainConfig,
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    spec: FeatureSpec,
    run: Path,
    *,
    team: Team = ALONE,
    resume: bool = False,
    repairs: Sequence[str] = (),
    on_step: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """Train and return the best checkpoint by `config.select_by` on `val_samples`.

    With `resume` it goes on from the newest whole state in `run`, or from the start where none was written yet; on the
    same machine the losses that follow are bit by bit those of a run that was never stopped. `repairs` are sentences
    for run.json; `say` hears of what a person should know.

    Raises InputError when samples do not fit the config, when the loss stops being finite, or when `run` is in use or
    already holds a run; ContractError when a state or another config does not fit.
    """
    config = resolve(config, train_samples, val_samples, spec, team)
    with only_process(run / ".lock") if team.leads else nullcontext(), reproducible(config.deterministic):
        _claim(run, team, resume)
        trainer = _Trainer(config, train_samples, val_samples, spec, run, team, on_step)
        trainer.start(resume, repairs, say)
        trainer.work()
        return trainer.finish()


def resolve(
    config: TrainConfig, train_samples: Sequence[Sample], val_samples: Sequence[Sample], spec: FeatureSpec, team: Team
) -> TrainConfig:
    """The config with feature widths and precision filled in, after a look at whether the samples fit it."""
    if not train_samples or not val_samples:
        raise InputError("no samples: expected one annotated query at least, for training and for validation")
    absent = config.data.negatives > 0 or any(is_absent(sample.row) for sample in train_samples)
    model = replace(
        config.model, video_width=spec.video_width, text_width=spec.text_width, presence=config.model.presence or absent
    )
    config = replace(config, model=model)
    if model.layers > spec.layers and model.feature_mode == "intermediate":
        raise InputError(f"model.layers is {model.layers}, the features hold {spec.layers}: set at most {spec.layers}")
    crowded = max(train_samples, key=lambda s: len(s.windows))
    if len(crowded.windows) > model.queries:
        raise InputError(
            f"qid {crowded.row['qid']} has {len(crowded.windows)} windows, the model predicts {model.queries} moments: "
            f"set model.queries to {len(crowded.windows)} or more"
        )
    known = [n for n in metric_names(val_samples, config.data) if model.presence or n != PRESENCE_AUROC]
    if config.select_by not in known:
        raise InputError(f"select_by: expected one of {', '.join(known)}, got {config.select_by!r}")
    return resolve_precision(config, team)


def validate(model: SDST, samples: Sequence[Sample], data: DataConfig) -> dict[str, float]:
    """The "brief" metrics in percent, in float32 whatever the training's precision."""
    return score(_predict(model, samples, data), samples, data)["brief"]


def _predict(model: SDST, samples: Sequence[Sample], data: DataConfig) -> list[dict[str, Any]]:
    return predict(TorchSession(model), samples, data.clip_s, layers=needed_layers(model.config))


class _Trainer:
    """One run from its first or resumed step to its end."""

    def __init__(
        self,
        config: TrainConfig,
        train_samples: Sequence[Sample],
        val_samples: Sequence[Sample],
        spec: FeatureSpec,
        run: Path,
        team: Team,
        on_step: Callable[[Progress], None],
    ) -> None:
        self.config, self.train_samples, self.val_samples = config, train_samples, val_samples
        self.spec, self.run, self.team, self.on_step = spec, run, team, on_step
        self.batches = RunBatches(train_samples, config, team)
        self.samples_digest = digest_rows((*train_samples, *val_samples))
        self.learner = Learner(config, len(self.batches), team)
        self.best, self.done = Best(), 0
        self.seconds, self.started = 0.0, time.perf_counter()  # worked before this start, and since when
        self.log: RunLog | None = None

    def start(self, resume: bool, repairs: Sequence[str], say: Callable[[str], None]) -> None:
        """Write what describes the run, or go on from its newest state."""
        state = self.team.tell(load_state(self.run, say) if resume and self.team.leads else None)
        if state is not None:
            self._restore(state, say)
        elif resume:
            say("no whole state was written before the run stopped: starting from its first step")
        if not self.team.leads:
            return
        remove_leftovers(self.run)
        remove_leftovers(self.run / "state")
        if state is None:
            facts = start_facts(self.learner.model, self.team, self.train_samples, self.val_samples)
            write_json(self.run / "run.json", {**facts, "repairs": list(repairs), "finished": None})
            write_json(self.run / "config.json", asdict(self.config))  # last: with it the folder holds a run
        self.log = RunLog(self.run, self.done)

    def work(self) -> None:
        """Steps and epochs until the run is over."""
        if self._stopped():
            return
        for step, batch in enumerate(load_batches(self.batches, self.done), self.done + 1):
            losses = self.learner.update(batch.to(self.team.device), step)
            self.done = step
            self._log_step(losses)
            if step % self.batches.per_epoch == 0:
                self._end_epoch()
                if self._stopped():
                    return
            elif step % self.config.save_every_steps == 0:
                self._save_state()

    def finish(self) -> Checkpoint:
        """Measure the best weights once more, with every metric, and close the run."""
        if self.log is not None:
            self.log.close()
        if self.team.leads:
            best = load_checkpoint(self.run / "best.safetensors")
            rows = _predict(best.model.to(self.team.device), self.val_samples, self.config.data)
            write_json(self.run / "val_metrics.json", score(rows, self.val_samples, self.config.data))
            reason = "early stop" if self.done < len(self.batches) else "all epochs"
            self._note_end({"reason": reason, "best_epoch": self.best.epoch, "seconds": round(self._worked(), 1)})
            forget_states(self.run)
        self.team.tell(None)  # the others wait until the files are there
        return load_checkpoint(self.run / "best.safetensors")

    @property
    def _epoch(self) -> int:
        """The epoch of the last step done, from 1."""
        return -(-self.done // self.batches.per_epoch)

    def _stopped(self) -> bool:
        waited = self.done // self.batches.per_epoch - self.best.epoch  # whole epochs
        return self.done >= len(self.batches) or waited >= (self.config.patience or math.inf)

    def _log_step(self, losses: dict[str, float]) -> None:
        if self.log is None:
            return
        rate = self.config.learning_rate * rate_factor(self.done, len(self.batches), self.config)
        self.log.step({"step": self.done, "epoch": self._epoch, "lr": rate, **losses})
        if self.done % self.batches.per_epoch:
            self._tell(losses, None)

    def _end_epoch(self) -> None:
        if self.log is not None:
            metrics = validate(self.learner.averaged, self.val_samples, self.config.data)
            means = self.log.mean_losses(self._epoch)
            self._tell(means, metrics)
            row = {"epoch": self._epoch, "step": self.done, "seconds": round(self._worked(), 3), **means, **metrics}
            self.log.epoch(row)
            self._keep(metrics)
        self.best = self.team.tell(self.best)
        self._save_state()

    def _keep(self, metrics: dict[str, float]) -> None:
        """The checkpoints of this epoch."""
        clips = [len(sample.video) for sample in {s.row["vid"]: s for s in self.train_samples}.values()]
        checkpoint = Checkpoint(
            self.learner.averaged, self.config, self.spec, self._epoch, metrics, int(median(clips)), max(clips)
        )
        if metrics[self.config.select_by] > self.best.value:
            self.best = Best(metrics[self.config.select_by], self._epoch)
            save_checkpoint(self.run / "best.safetensors", checkpoint)
        save_checkpoint(self.run / "last.safetensors", checkpoint)

    def _tell(self, losses: dict[str, float], metrics: dict[str, float] | None) -> None:
        steps = len(self.batches)
        self.on_step(Progress(self._epoch, self.config.epochs, self.done, steps, losses, metrics))

    def _worked(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _save_state(self) -> None:
        if self.team.leads:
            state = RunState(
                step=self.done,
                best=self.best.value,
                best_epoch=self.best.epoch,
                seconds=self._worked(),
                config=dump_json(asdict(self.config)),
                samples=self.samples_digest,
                machine=self._machine(),
                **self.learner.state(),
            )
            save_state(self.run, state)

    def _restore(self, state: RunState, say: Callable[[str], None]) -> None:
        if state.samples != self.samples_digest:
            raise InputError(f"{self.run}: the annotations are not those the run began with; start a new run")
        _require_same(_object(state.config, self.run), asdict(self.config), self.run)
        if state.machine != self._machine():
            say(f"the run began on {state.machine}, this is {self._machine()}: losses may differ in their last digits")
        parts = {"model": state.model, "averaged": state.averaged}
        self.learner.load({**parts, "optimizer": state.optimizer, "scaler": state.scaler}, f"{self.run}/state")
        self.best, self.done, self.seconds = Best(state.best, state.best_epoch), state.step, state.seconds
        if self.team.leads and (self.run / "best.safetensors").is_file():
            self._trust(load_checkpoint(self.run / "best.safetensors"))
        say(f"resuming after step {state.step} of {len(self.batches)}")

    def _trust(self, stored: Checkpoint) -> None:
        """The file may be of an epoch after the state, written just before the kill: then it is the best one."""
        if stored.epoch > self.best.epoch:
            self.best = Best(stored.metrics[self.config.select_by], stored.epoch)

    def _machine(self) -> str:
        device = self.team.device
        place = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        )
        return f"torch {torch.__version__}, {place}, {self.team.world} process(es)"

    def _note_end(self, finished: dict[str, Any]) -> None:
        facts = _facts(self.run / "run.json")
        write_json(self.run / "run.json", {**facts, "finished": finished})


def finished(run: Path) -> dict[str, Any] | None:
    """How a run ended, as run.json says: reason, best_epoch, seconds; None while it has not."""
    path = run / "run.json"
    if not path.is_file():
        return None
    end = _facts(path).get("finished")
    if end is not None and (not isinstance(end, dict) or "reason" not in end):
        raise InputError(f"{path}: its finished is no end of a run; start a new run")
    return end


def _facts(path: Path) -> dict[str, Any]:
    """run.json. Raises InputError when it is damaged."""
    facts = read_json(path, "start a new run")
    if not isinstance(facts, dict):
        raise InputError(f"{path}: expected an object, got {type(facts).__name__}; start a new run")
    return facts


def _object(text: str, run: Path) -> dict[str, Any]:
    value = load_json(text, f"{run}: the config in its state is", "start a new run")
    if not isinstance(value, dict):
        raise InputError(f"{run}: the config in its state is no object; start a new run")
    return value


def _claim(run: Path, team: Team, resume: bool) -> None:
    """A new run needs an unused folder; a resumed one must be unfinished."""
    path = run / "config.json"
    used, end = team.tell((path.is_file(), finished(run)) if team.leads else None)
    if not resume and used:
        raise InputError(f"{run} holds a run already: go on with  sdst train --resume {run}  or choose another --out")
    if resume and end:
        raise InputError(f"{run} has finished ({end['reason']}): there is nothing to resume; start a new run")


def digest_rows(samples: Sequence[Sample]) -> str:
    """SHA-256 of annotations, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(dump_json(sample.row).encode())
    return digest.hexdigest()


def _require_same(stored: dict[str, Any], asked: dict[str, Any], run: Path) -> None:
    """Raise ContractError when a field that shapes batches or arithmetic has changed since the state was written."""
    changed = difference(*({name: c[name] for name in c if name not in FREE_TO_CHANGE} for c in (asked, stored)))
    if changed is not None:
        name, value, begun = changed
        raise ContractError(f"{run}: it began with {name} = {begun!r}, not {value!r}; set it back")
