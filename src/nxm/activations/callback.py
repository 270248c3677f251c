"""Integer activations as a Trainer callback, together with that of a method or alone."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nxm.activations.settings import DEFAULT_ACTIVATIONS, Activations
from nxm.methods.state import checkpoint, read_state, saved_checkpoint, write_state
from nxm.models.activations import QuantisedInputs, forget_ranges, write_ranges
from nxm.models.targets import find_targets, owner_of_config, unwrap
from nxm.sets.saved import restore_renamed

STATE_FILE = "nxm_activations.safetensors"


class ActivationsCallback(TrainerCallback):
    """Trains with the inputs of the target matrices rounded to integers (`nxm.models.activations`).

    Example: `Trainer(..., callbacks=[AdmmCallback(Integers(4, mask=NM(2, 4))), ActivationsCallback()])` makes a model
    of 2:4, 4-bit weights and 8-bit activations.

    From `settings.round_from` on inputs are rounded, in training and in evaluation, and their ranges tracked. At the
    end the model's config names the ranges, and the model goes on computing with them until `remove`. Loaded again, it
    does so after `nxm.models.activations.quantise_inputs(model)`.

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
        forget_ranges(getattr(model, "config", None))
        names = find_targets(model, self.include, self.exclude)
        self._begin = math.floor(state.max_steps * self.settings.round_from)
        self.inputs = QuantisedInputs(model, names, self.settings.bits, self.settings.averaging, training=state)
        if state.global_step > 0:
            restore_renamed(model, checkpoint(args, state))
            self.inputs.load(read_state(checkpoint(args, state) / STATE_FILE)[0])
            self.inputs.active = state.global_step >= self._begin

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.inputs is not None:
            self.inputs.active = state.global_step >= self._begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.inputs is not None:
            self.inputs.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.inputs is not None and args.should_save:
            write_state(saved_checkpoint(args, state) / STATE_FILE, self.inputs.ends, {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if self.inputs is None:
            return
        model, best = unwrap(model), state.best_model_checkpoint
        # Then the weights are that checkpoint's; unless it is gone, which the Trainer warns of.
        if args.load_best_model_at_end and best is not None and Path(best).is_dir():
            restore_renamed(model, Path(best))
            self.inputs.load(read_state(Path(best) / STATE_FILE)[0])
        ranges = self.inputs.ranges()
        if not ranges:
            warnings.warn(
                f"no inputs were rounded in what is kept of the training, which rounds from step {self._begin} on: the "
                "model has real activations",
                stacklevel=2,
            )
        elif unknown := [name for name in self.inputs.ends if name not in ranges]:
            warnings.warn(
                f"the inputs of {len(unknown)} of {len(self.inputs.ends)} matrices were not seen from step "
                f"{self._begin} on, first {unknown[0]}: they stay real",
                stacklevel=2,
            )
        if getattr(model, "config", None) is not None:
            prefix, _ = owner_of_config(model)
            ranges = {name.removeprefix(prefix): ends for name, ends in ranges.items() if name.startswith(prefix)}
            if ranges:  # else the config is that of a part without targets
                write_ranges(model.config, self.settings.bits, ranges)
