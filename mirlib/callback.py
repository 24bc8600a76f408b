"""MIR during training: a callback for the Trainer of transformers.

transformers hands a callback everything but the trainer, which alone can pass numbers on to TensorBoard and the other
reporters; hence `MIRCallback.attach`. Without it they reach ``trainer.state.log_history`` and `MIRCallback.history`.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from mirlib.batches import PAIR_OPTIONS, PairBatches, pair_batches
from mirlib.distributed import Processes, needs_all_processes
from mirlib.errors import MirlibError, MirlibWarning
from mirlib.mir import check_confidence
from mirlib.result import MIRResult
from mirlib.scoring import score, score_pairs

if TYPE_CHECKING:
    import pandas as pd
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["MIRCallback"]

logger = logging.getLogger(__name__)

PREFIX = "mir_"
RECORD = "step mir norm_only zeroed_rows mean_term covariance_term norm_ratio low high seconds per_layer".split()


class MIRCallback(TrainerCallback):
    """Measures MIR while a model trains, logs it with its parts and baselines, and can stop a run.

    Each measurement is what `mirlib.score` gives at that step, on the same pairs every time, in one forward pass over
    them, with an interval two. Modes, gradients and random states stay what they were, and so do the run's weights.

    Logged are ``mir``, ``mir_norm_only``, ``mir_zeroed_rows``, ``mir_mean_term`` and ``mir_covariance_term`` (sums over
    the layers), ``mir_norm_ratio`` (of layer 1), ``mir_seconds``, and with ``confidence`` the ends of the interval,
    ``mir_low`` and ``mir_high``. The entry in ``trainer.state.log_history`` holds the (K,) list ``mir_per_layer``, too;
    a run that resumes from a checkpoint takes its `history` from it.

    In a distributed run each process measures its share of the pairs, and all get the same numbers; parameters that are
    sharded in another way than by FSDP are refused.

    Args:
        processor: The model's processor, with a fast tokenizer.
        images: Paths, PIL images or (h, w, 3) uint8 arrays.
        texts: Non-empty strings.
        every: Optimiser steps between measurements. The last step is measured, too, unless an evaluation ends the run
            and the best model takes its place.
        at_start: Whether to measure before the first step. Without it, and in a run that resumes, two batches go
            through the model all the same, so that bad input ends the run at once.
        patience: Stop training when the largest and the smallest MIR of the last ``patience + 1`` measurements differ
            by less than ``min_delta``. None never stops.
        min_delta: In log10 units like MIR; 0.01 is a change of the summed distance by 2.3 %.
        **score_options: What `mirlib.score` takes, but for ``merge_processes``. Here ``batch_size`` is 8, and there are
            no bars and no intervals, unless ``progress`` and ``confidence`` ask for them.

    Attributes:
        history: A dict a measurement: ``step`` and what is logged, without ``mir_`` but for ``mir`` itself.
        latest: The latest `MIRResult`, or None.
        stopped: The sentence that says why the run was stopped, or None.

    Raises:
        MirlibError: For numbers out of range; when training begins, for all that `mirlib.score` refuses.
        TypeError: For options that `mirlib.score` does not take.
    """

    def __init__(
        self,
        processor: Any,
        images: Sequence[Any],
        texts: Sequence[str],
        *,
        every: int = 100,
        at_start: bool = True,
        patience: int | None = None,
        min_delta: float = 0.01,
        **score_options: Any,
    ) -> None:
        if every < 1:
            raise MirlibError(f"every must be at least 1 step, got {every}")
        if patience is not None and patience < 1:
            raise MirlibError(f"patience must be at least 1 measurement, or None, got {patience}")
        if not min_delta > 0:
            raise MirlibError(f"min_delta must be above 0, got {min_delta}")
        options = {"batch_size": 8, "progress": False, "confidence": None, **score_options}
        if "merge_processes" in options:
            raise TypeError("merge_processes is not for MIRCallback: the processes of a run always measure together")
        signature(score).bind(None, processor, images, texts, **options)  # an option that does not exist, said now
        if options["confidence"] is not None:
            check_confidence(options["confidence"])
        self.processor, self.images, self.texts = processor, images, texts
        self.every, self.at_start, self.patience, self.min_delta = every, at_start, patience, min_delta
        self._draw = {name: options.pop(name) for name in PAIR_OPTIONS & options.keys()}
        self._measure = options
        self._trainer: Trainer | None = None
        self._batches: PairBatches | None = None
        self.history: list[dict[str, Any]] = []
        self.latest: MIRResult | None = None
        self.stopped: str | None = None

    def attach(self, trainer: Trainer) -> MIRCallback:
        """Add the callback to a trainer, if it is not there yet, and log through it, which reaches every reporter."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._trainer = trainer
        return self

    def to_frame(self) -> pd.DataFrame:
        """The history as a DataFrame indexed by step; FID of layer k stands in the column ``layer_k``."""
        import pandas as pd

        columns = list(self.history[0]) if self.history else ["step", "mir", "per_layer"]
        frame = pd.DataFrame(self.history, columns=columns).set_index("step")
        layers = enumerate(zip(*frame.pop("per_layer"), strict=True), start=1)
        return frame.assign(**{f"layer_{k}": distances for k, distances in layers})

    # -----------------------------------------------------------------------------------------------------------------
    # What the trainer calls

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Refuse what cannot be measured, take up the history of the run that this one resumes, measure."""
        needs_all_processes(model)  # which refuses what it cannot measure
        self.history = [_from_log(entry) for entry in state.log_history if PREFIX + "per_layer" in entry]
        self.latest, self.stopped, self._batches = None, None, None
        if self._trainer is None and args.report_to and state.is_world_process_zero:
            why = "because a callback does not know its trainer; MIRCallback.attach(trainer) tells it"
            warnings.warn(f"MIR will not reach {', '.join(args.report_to)}, {why}", MirlibWarning, stacklevel=2)
        if self.at_start and state.global_step == 0 and not self.history:
            self._measure_and_log(state, control, model)
        else:
            self._try(model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Measure if it is time, and stop the run if MIR stands still."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure_and_log(state, control, model)
            self._stop_if_still(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Measure the last step of a run that something else stops."""
        if control.should_training_stop and self._is_behind(state):
            self._measure_and_log(state, control, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """The same where it was stopped after its last epoch; a best model that was loaded is not that of this step."""
        if not args.load_best_model_at_end and self._is_behind(state):
            self._measure_and_log(state, control, model)

    def _is_behind(self, state: TrainerState) -> bool:
        return state.global_step > 0 and (not self.history or self.history[-1]["step"] != state.global_step)

    # -----------------------------------------------------------------------------------------------------------------
    # Measuring

    def _pairs(self, model: nn.Module) -> PairBatches:
        if self._batches is None:  # drawn and checked once
            self._batches = pair_batches(model, self.processor, self.images, self.texts, **self._draw)
        return self._batches

    def _try(self, model: nn.Module) -> None:
        """Send two batches through the model: what they raise, a measurement would raise an hour later."""
        with _random_state_kept(model):
            score_pairs(model, self._pairs(model).first(2), **{**self._measure, "progress": False, "confidence": None})

    def _record(self, model: nn.Module, step: int) -> dict[str, Any]:
        started = time.monotonic()
        with _random_state_kept(model):
            self.latest = result = score_pairs(model, self._pairs(model), **self._measure)
        terms = {name: float(getattr(result, name).sum()) for name in ("mean_term", "covariance_term")}
        record = {"step": step, "mir": result.value, "norm_only": result.norm_only, "zeroed_rows": result.zeroed_rows}
        record |= terms | {"norm_ratio": float(result.norm_ratio[0])}
        if result.interval is not None:
            record |= {"low": result.interval.low, "high": result.interval.high}
        record |= {"seconds": time.monotonic() - started, "per_layer": result.per_layer.tolist()}
        return Processes.current().gather(record)[0]  # the clocks differ

    def _measure_and_log(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        record = self._record(model, state.global_step)
        self.history.append(record)

        logs = {name if name == "mir" else PREFIX + name: value for name, value in record.items()}
        step, per_layer = logs.pop(PREFIX + "step"), logs.pop(PREFIX + "per_layer")
        entry = None
        if self._trainer is not None:
            due = control.should_log  # the trainer takes any log for the one that is due, and would skip its loss
            self._trainer.log(dict(logs))
            control.should_log = due
            entry = next((e for e in reversed(state.log_history) if e.get("step") == step and "mir" in e), None)
        if entry is None:
            entry = {**logs, "epoch": state.epoch, "step": step}
            state.log_history.append(entry)
        entry[PREFIX + "per_layer"] = per_layer  # after the reporters, which take single numbers only

    def _stop_if_still(self, state: TrainerState, control: TrainerControl) -> None:
        if self.patience is None or len(self.history) <= self.patience:
            return
        recent = [record["mir"] for record in self.history[-self.patience - 1 :]]
        moved = max(recent) - min(recent)
        if math.isfinite(moved) and moved < self.min_delta:
            control.should_training_stop = True
            less = f"over the last {self.patience} measurements, less than min_delta={self.min_delta:g}"
            self.stopped = f"training stops after step {state.global_step}: MIR moved by {moved:.2g} {less}"
            if state.is_world_process_zero:
                logger.warning("MIRCallback: %s", self.stopped)


def _from_log(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a log entry; a checkpoint keeps its keys in another order."""
    values = {name.removeprefix(PREFIX): value for name, value in entry.items()}
    return {name: values[name] for name in RECORD if name in values}


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    """A forward pass in evaluation mode draws nothing, but for models that do as they please."""
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield
