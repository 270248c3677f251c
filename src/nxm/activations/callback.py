"""Integer activations as a Trainer callback, beside that of a method or alone."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm.activations.inputs import QuantisedInputs, write_ranges
from nxm.activations.settings import DEFAULT_ACTIVATIONS, Activations
from nxm.methods.state import checkpoint, read_state, saved_checkpoint, write_state
from nxm.models.targets import find_targets, unwrap

STATE_FILE = "nxm_activations.safetensors"


class ActivationsCallback(TrainerCallback):
    """Trains with the inputs of the target matrices rounded to integers (`nxm.activations.inputs`).

    Example: `Trainer(..., callbacks=[AdmmCallback(Integers(4, mask=NM(2, 4))), ActivationsCallback()])` makes a model
    of 2:4, 4-bit weights and 8-bit activations.

    From `settings.round_from` on inputs are rounded, in training and in evaluation, and their ranges tracked. At the
    end the model's config names the ranges, and the model goes on computing with them until `remove`. Loaded again, it
    does so after `nxm.activations.inputs.quantise_inputs(model)`.

    Args:
        settings: see `nxm.activations.settings.Activations`.
        include, exclude: regular expressions on weight names, see `nxm.models.targets.find_targets`.

    Attributes:
        inputs: the hooks on the model, from the begin of a training on.
    """

    def __init__(
        self,
        settings: Activations = DEFAULT_ACTIVATIONS,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ) -> None:
        self.settings, self.include, self.exclude = settings, include, exclude
        self.inputs: QuantisedInputs | None = None
        self._begin = 0

    def remove(self) -> None:
        """Let the model compute with real activations again."""
        if self.inputs is not None:
            self.inputs.remove()
            self.inputs = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self.remove()
        model = unwrap(model)
        names = find_targets(model, self.include, self.exclude)
        self._begin = math.floor(state.max_steps * self.settings.round_from)
        self.inputs = QuantisedInputs(model, names, self.settings.bits, self.settings.averaging)
        if state.global_step > 0:
            self.inputs.load(read_state(checkpoint(args, state) / STATE_FILE)[0])
            self.inputs.active = state.global_step >= self._begin

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.inputs is not None:
            self.inputs.active = state.global_step >= self._begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.inputs is not None:
            self.inputs.synchronise()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.inputs is not None and args.should_save:
            write_state(saved_checkpoint(args, state) / STATE_FILE, self.inputs.ends, {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.inputs is None:
            return
        best = state.best_model_checkpoint
        # Then the weights are that checkpoint's; unless it is gone, which the Trainer warns of.
        if args.load_best_model_at_end and best is not None and Path(best).is_dir():
            self.inputs.load(read_state(Path(best) / STATE_FILE)[0])
        ranges = self.inputs.ranges()
        if unknown := [name for name in self.inputs.ends if name not in ranges]:
            warnings.warn(
                f"the inputs of {len(unknown)} of {len(self.inputs.ends)} matrices were not seen from step "
                f"{self._begin} on, first {unknown[0]}: they stay real",
                stacklevel=2,
            )
        if (config := getattr(unwrap(model), "config", None)) is not None and ranges:
            write_ranges(config, self.settings.bits, ranges)
