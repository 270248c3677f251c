"""Structured pruning as a Trainer callback.

    callback = StructuredCallback(Structured(recipe="learned", budget=0.2, multiple=8))
    Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    small = shrink(model, structure_of(model), multiple=8)

No module is patched. While masks are learned, a step trains on masked weights: they are multiplied by their masks
before the step's first forward pass, and after the last backward pass the gradients of the masks are read off those of
the weights (`Gate.mask_gradient`), the unmasked weights are put back, and an Adam of the callback's own moves scores
and thresholds. Gradients have been clipped by then, as in MLPruning, so that the scores' are scaled likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import PreTrainedModel

from nxm.errors import Diverged, UserError
from nxm.methods.callback import MethodCallback
from nxm.methods.structured.algorithm import (
    Gate,
    Part,
    Sizes,
    allocate,
    budget_at,
    clamped,
    fit_thresholds,
    n_kept,
    regulariser,
    share_of_blocks,
    share_of_layers,
    straight_through,
    top_k,
)
from nxm.methods.structured.settings import DEFAULT_STRUCTURED, Structured
from nxm.models import cost as costs
from nxm.models.cost import Cost
from nxm.models.roles import find_blocks
from nxm.models.shrink import shrink
from nxm.models.structure import Structure, full_structure, living, structure_of
from nxm.models.targets import find_targets, refuse_frozen

PAPER_THRESHOLD = 10.0
PAPER_RATE = 0.01  # of scores and thresholds
SCORE_MEAN = 0.05  # of scores that start from an importance: small enough that training reorders them


def make(
    constraint: None, settings: Structured, include: tuple[str, ...], exclude: tuple[str, ...]
) -> StructuredCallback:
    """Return the callback as a study trains with it."""
    return StructuredCallback(settings, include, exclude)


class StructuredCallback(MethodCallback):
    """Prunes heads, FFN rows or blocks while a Trainer trains (`nxm.methods.structured.algorithm`).

    In eval mode the network is the pruned one, within the budget; training and checkpoints go on with all weights. At
    the end the weights outside the structure are zero: `nxm.shrink` removes them. The state is saved with each
    checkpoint and restored by `resume_from_checkpoint`.

    Args:
        settings: see `nxm.methods.structured.settings.Structured`; default `DEFAULT_STRUCTURED`.
        include, exclude: for blocks, regular expressions on weight names, see `nxm.models.targets.find_targets`. Heads
            and rows reach over several matrices and take no patterns.

    Attributes:
        gates: name -> gate, from `on_train_begin` on.
        masks: name -> bool mask of the gate's units, (n,): those that are left.
        choice_is_final: True once the masks stay for the rest of the training.

    Raises:
        UserError: patterns for heads and rows; at the start of a training: the architecture is unknown, a matrix does
            not divide into blocks, the budget cannot be met, the run is too short, or fp16 or sharded weights.
    """

    def __init__(
        self, settings: Structured | None = None, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
    ) -> None:
        self.settings = settings or DEFAULT_STRUCTURED
        self.settings.refuse_targets(include, exclude)
        self.include = include
        self.exclude = exclude
        self.gates: dict[str, Gate] = {}
        self.masks: dict[str, Tensor] = {}
        self.choice_is_final = False
        self.course: list[dict[str, Any]] = []
        self._final_masks: dict[str, Tensor] | None = None  # `final_masks` of the present weights
        self._last_step = 0

    # The parts of a training, in the order of their use.

    def begin(self, model: nn.Module, steps: int) -> None:
        """Prepare a training of `steps` optimizer steps of a model that has its initial weights."""
        paper = self.settings.recipe == "paper"
        blocks = find_blocks(model)
        self.sizes = Sizes(len(blocks), blocks[0].n_heads, blocks[0].n_rows, blocks[0].hidden_size)
        if self.settings.units == "blocks":
            self.gates = _block_gates(find_targets(model, self.include, self.exclude), self.settings.block)
        else:
            outputs = self.settings.units == "heads_rows_outputs"
            self.gates = _layer_gates(model, gate_inputs=paper or outputs, outputs=outputs)
            regularised = paper or self.settings.control == "regulariser" or outputs
            if regularised and len({(block.n_heads, block.n_rows) for block in blocks}) > 1:
                raise UserError(
                    "the regulariser and output rows are counted in layers of one size, and the layers of this model "
                    f"have {[block.n_heads for block in blocks]} heads and {[block.n_rows for block in blocks]} rows: "
                    "use recipe 'learned' with control 'budget', or blocks"
                )
        device = next(iter(self.gates.values())).gated[0].weight.device
        self.masks = {name: torch.ones(gate.n, dtype=torch.bool, device=device) for name, gate in self.gates.items()}
        self.choice_is_final = False
        self.course = []
        self.fisher = {name: torch.zeros(gate.n, device=device) for name, gate in self.gates.items()}
        self.fisher_steps = 0
        self.scores = {name: nn.Parameter(torch.zeros(gate.n, device=device)) for name, gate in self.gates.items()}
        start = PAPER_THRESHOLD if paper else self.settings.threshold_start
        self.thresholds = {name: nn.Parameter(torch.tensor(start)) for name in self.gates}  # CPU: counts are made there
        self.rates = (
            (PAPER_RATE, PAPER_RATE) if paper else (self.settings.score_rate, self.settings.threshold_rate)
        )  # of scores and thresholds
        self.adam = torch.optim.Adam(
            [{"params": list(self.scores.values())}, {"params": list(self.thresholds.values())}]
        )
        self._plan(model, steps)

    def _plan(self, model: nn.Module, steps: int) -> None:
        """Set the budget and the steps at which phases end."""
        settings = self.settings
        settings.refuse_short_training(steps, None)
        self.measured_at, self.ramped_at, self.frozen_at = settings.phases(steps)
        self.table = self._cost_table(model) if settings.units == "heads_rows" else None
        self.whole = self.table.of(full_structure(model)) if self.table else 1.0
        if settings.recipe != "paper":
            fit_thresholds(self._threshold_values(), self._share_of_thresholds, settings.budget)  # can it be met?

    def _cost_table(self, model: nn.Module) -> Cost:
        if self.settings.cost == "flops":
            return costs.flops(model, self.settings.length)
        if self.settings.cost == "latency":
            return costs.read_cost(Path(self.settings.latency), model)
        return costs.weights(model)

    def importance(self) -> dict[str, Tensor]:
        """Return gate -> importance of its units, (n,): the mean Fisher information so far, else magnitudes.

        Fisher information is the squared gradient of the loss by the unit's mask.
        """
        if self.fisher_steps and self.settings.importance == "fisher":
            return {name: total / self.fisher_steps for name, total in self.fisher.items()}
        return {name: gate.energy() for name, gate in self.gates.items()}

    def structure(self, budget: float) -> Structure:
        """Return the structure within a budget, a share of the dense model's cost, by the importance.

        What is dead already stays dead.
        """
        importance = self.importance()
        alive = {name: torch.where(self.masks[name], values, -1.0) for name, values in importance.items()}
        heads, rows = (
            [alive[name] for name, gate in self.gates.items() if gate.kind == kind] for kind in ("heads", "rows")
        )
        assert self.table is not None
        return allocate(heads, rows, self.table, budget * self.whole, self.settings.multiple)

    def learned_masks(self, scores: Mapping[str, Tensor], thresholds: Mapping[str, float]) -> dict[str, Tensor]:
        """Return gate -> the mask of its best units by the scores, as many as the thresholds keep."""
        kept = self._counts(thresholds)
        return {name: top_k(scores[name], kept[name]) for name in self.gates}

    def final_masks(self) -> dict[str, Tensor]:
        """Return the masks of the network that training would end with now, within the budget but for the paper's."""
        settings = self.settings
        if self.choice_is_final:
            return self.masks
        if settings.recipe in ("one_shot", "gradual"):
            return self._masks_of(self.structure(settings.budget))
        thresholds = self._threshold_values()
        if settings.recipe == "paper":
            return self.learned_masks(self.scores, thresholds)
        scores = self.scores if self._scores_are_set else self._first_scores()
        shift = fit_thresholds(thresholds, self._share_of_thresholds, settings.budget)
        return self.learned_masks(scores, {name: t + shift for name, t in thresholds.items()})

    def share_left(self, masks: Mapping[str, Tensor]) -> float:
        """Return the hard count of masks: the share that is left, of weights or in the unit of the budget."""
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        return self._share_of_counts(kept)

    # The base class calls these.

    def start(self, model: nn.Module, steps: int, steps_per_epoch: int | None) -> dict[str, nn.Parameter]:
        if AcceleratorState().mixed_precision == "fp16":
            raise UserError("fp16 scales the gradients from which the masks' are read: use bf16 or fp32")
        self._unmasked: dict[nn.Parameter, Tensor] = {}  # gated weights, during a step on masked ones
        self._final_masks = None
        self.begin(model, steps)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._embeddings = [parameter for name, parameter in model.named_parameters() if ".embeddings." in f".{name}"]
        self._parts: dict[str, list[tuple[str, Part]]] = {}  # parameter's name -> gates' names and the parts in it
        for gate_name, gate in self.gates.items():
            for part in gate.members:
                self._parts.setdefault(names[id(part.weight)], []).append((gate_name, part))
        members = {name: parts[0][1].weight for name, parts in self._parts.items()}
        refuse_frozen(members)
        return members

    def projected(self, name: str, W: Tensor) -> Tensor | None:
        if self._final_masks is None:  # counted once for all parameters, while these have their training values
            self._final_masks = self.final_masks()
        factors = [
            part.expand(self._final_masks[gate])
            for gate, part in self._parts[name]
            if not self._final_masks[gate].all()
        ]
        if not factors:
            return None
        pruned = W.detach().clone()
        for factor in factors:
            pruned.mul_(factor).add_(0.0)  # + 0.0 turns -0.0 into +0.0
        return None if torch.equal(pruned, W) else pruned

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Choose the step's masks and apply them."""
        if self._unmasked:  # a further part of an accumulated gradient
            return
        settings = self.settings
        self._final_masks = None
        if not self.choice_is_final and step >= self.frozen_at:
            self._set_masks(step, self.final_masks())
            self.choice_is_final = True
        elif not self.choice_is_final and step >= self.measured_at:
            pruning = step > self.measured_at and (step - self.measured_at) % settings.interval == 0
            if settings.recipe == "gradual" and pruning:
                self._set_masks(step, self._masks_of(self.structure(self._budget(step))))
                self.fisher_steps = 0  # from here on the smaller network's
                for total in self.fisher.values():
                    total.zero_()
            elif settings.recipe in ("paper", "learned"):
                self._learned_step(step)
        if self._holds:
            self._hold()
        else:
            self._unmasked = self._copies()
            self._multiply(self.masks, members=False)

    @torch.no_grad()
    def before_update(self, step: int, optimizer: Any) -> None:
        """Read the masks' gradients off the weights', put the weights back, and move scores and thresholds."""
        self._final_masks = None
        if not self.choice_is_final:
            values = {
                name: [self._unmasked.get(part.weight, part.weight) for part in gate.gated]
                for name, gate in self.gates.items()
            }
            gradients = {name: gate.mask_gradient(values[name]) for name, gate in self.gates.items()}
            if not all(bool(g.isfinite().all()) for g in gradients.values()):
                raise Diverged("the gradients of the masks are not finite: training diverged (lower the learning rate)")
            if step < self.measured_at or self.settings.recipe == "gradual":
                self.fisher_steps += 1
                for name, g in gradients.items():
                    self.fisher[name] += g.square()
            if step >= self.measured_at and self.settings.recipe in ("paper", "learned"):
                self._move(gradients, _schedule(optimizer))
        self._unmask()
        for name, gate in self.gates.items():
            for part in gate.members if self._holds else gate.gated:
                if part.weight.grad is not None:
                    part.weight.grad.mul_(part.expand(self.masks[name]))
        if self.settings.freeze_embeddings:
            for parameter in self._embeddings:
                parameter.grad = None

    def after_update(self, step: int, skipped: bool) -> None:
        self._final_masks = None
        if self._holds:
            self._hold()

    def training_value(self, name: str) -> Tensor | None:
        return self._unmasked.get(self._parts[name][0][1].weight)

    @torch.no_grad()
    def abandon(self) -> None:
        masked = {weight: values.clone() for weight, values in self._unmasked.items()}
        for name, gate in self.gates.items():
            for part in gate.gated if masked else ():
                masked[part.weight].mul_(part.expand(self.masks[name]))
        for weight, values in self._unmasked.items():
            if torch.equal(weight, masked[weight]):  # else somebody loaded other weights
                weight.copy_(values)
        self._unmasked = {}

    def load_best(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        course = self.course
        self.load_whole_state(tensors, metadata)
        self.course = course

    def finish(self, model: nn.Module) -> None:
        self._set_masks(self._last_step, self.final_masks())
        self.choice_is_final = True
        self._hold()

    def to_save(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model without its dead heads and rows; with blocks, whose zeros lie inside, the model itself."""
        if self.settings.units == "blocks":
            return model
        return shrink(model, structure_of(model), self.settings.multiple)

    def after_step(self, step: int, optimizer: Any) -> None:
        self._last_step = step

    def record(self) -> dict[str, Any]:
        """Return the course of the last training and its structure, as JSON.

        `course` has by step the masks' hard count and, for learned thresholds, each gate's number of units; `kept` has
        for each gate the units at the end.
        """
        return {
            "course": self.course,
            "kept": {name: int(mask.sum()) for name, mask in self.masks.items()},
            "share": self.share_left(self.masks),
        }

    def whole_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {}
        for name in self.gates:
            tensors[f"mask.{name}"] = self.masks[name]
            tensors[f"fisher.{name}"] = self.fisher[name]
            for kind, parameter in (("score", self.scores[name]), ("threshold", self.thresholds[name])):
                tensors[f"{kind}.{name}"] = parameter.detach().clone()
                for key, value in self.adam.state[parameter].items():
                    tensors[f"adam.{key}.{kind}.{name}"] = value.detach().clone()
        return tensors, {"final": self.choice_is_final, "fisher_steps": self.fisher_steps, "course": self.course}

    @torch.no_grad()
    def load_whole_state(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self._final_masks = None
        for name in self.gates:
            device = self.masks[name].device
            self.masks[name] = tensors[f"mask.{name}"].to(device)
            self.fisher[name] = tensors[f"fisher.{name}"].to(device)
            for kind, parameter in (("score", self.scores[name]), ("threshold", self.thresholds[name])):
                parameter.copy_(tensors[f"{kind}.{name}"])
                keys = ("step", "exp_avg", "exp_avg_sq")
                stored = {key: tensors[found] for key in keys if (found := f"adam.{key}.{kind}.{name}") in tensors}
                self.adam.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in stored.items()
                }
        self.choice_is_final = metadata["final"]
        self.fisher_steps = metadata["fisher_steps"]
        self.course = metadata["course"]

    # Learned scores and thresholds.

    def _learned_step(self, step: int) -> None:
        """Set the masks from scores and thresholds, and with `control: budget` the thresholds' shift."""
        if self.settings.recipe == "learned" and not self._scores_are_set:
            for name, values in self._first_scores().items():
                self.scores[name].copy_(values)
        if self.settings.recipe == "learned" and self.settings.control == "budget":
            shift = fit_thresholds(self._threshold_values(), self._share_of_thresholds, self._budget(step))
            for threshold in self.thresholds.values():
                threshold.add_(shift)
        self._set_masks(step, self.learned_masks(self.scores, self._threshold_values()))

    @property
    def _scores_are_set(self) -> bool:
        return any(bool(scores.any()) for scores in self.scores.values())

    def _first_scores(self) -> dict[str, Tensor]:
        """Return the scores at the start by the importance, with the same mean in each gate."""
        roots = {name: values.sqrt() for name, values in self.importance().items()}
        for name, root in roots.items():
            if not root.any():
                raise UserError(
                    f"{name}: the importance of all units is 0. A dense model that learns from itself alone has no "
                    "gradient at the start: set importance = 'magnitude', or give the labels' loss a weight"
                )
        return {name: SCORE_MEAN * root / root.mean() for name, root in roots.items()}

    def _move(self, gradients: dict[str, Tensor], schedule: float) -> None:
        """Take a step of Adam on scores and thresholds, from the task's gradient and the regulariser's."""
        settings = self.settings
        for name, gradient in gradients.items():
            of_scores, of_threshold = straight_through(gradient, self.masks[name])
            self.scores[name].grad = of_scores.clone()
            self.thresholds[name].grad = of_threshold.cpu()
        if settings.recipe == "paper" or settings.control == "regulariser":
            with torch.enable_grad():
                regulariser(self._soft_share(), settings.budget, settings.regularisation).backward()
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * schedule
        self.adam.step()

    def _soft_share(self) -> Tensor:
        """Return R, the regulariser's share of weights left, from sigma(t)."""
        if self.settings.units == "blocks":
            return share_of_blocks(list(self.thresholds.values()), [gate.n for gate in self.gates.values()])
        return self._by_kind({name: clamped(t, self.gates[name].n) for name, t in self.thresholds.items()})

    def _by_kind(self, shares: Mapping[str, Any]) -> Any:
        """Return the share of the weights from those of all gates; outputs without gates are all there."""
        kinds: dict[str, list[Any]] = {
            kind: [1.0] * self.sizes.layers for kind in ("heads", "rows", "o_outputs", "ffn2_outputs")
        }
        for name, share in shares.items():
            kinds[self.gates[name].kind][self.gates[name].layer] = share
        return share_of_layers(kinds["heads"], kinds["rows"], kinds["o_outputs"], kinds["ffn2_outputs"], self.sizes)

    def _share_of_counts(self, kept: Mapping[str, int]) -> float:
        if self.settings.units == "blocks":
            return sum(kept.values()) / sum(gate.n for gate in self.gates.values())
        if self.table is None:
            return float(self._by_kind({name: kept[name] / gate.n for name, gate in self.gates.items()}))
        n_heads, n_rows = (
            [kept[name] for name, gate in self.gates.items() if gate.kind == kind] for kind in ("heads", "rows")
        )
        return self.table.of_counts(n_heads, n_rows) / self.whole

    def _counts(self, thresholds: Mapping[str, float]) -> dict[str, int]:
        """Return how many units of each gate the thresholds keep; widths of the FFN are rounded up."""
        return {
            name: n_kept(thresholds[name], gate.n, self.settings.multiple if gate.kind == "rows" else 1)
            for name, gate in self.gates.items()
        }

    def _share_of_thresholds(self, thresholds: Mapping[str, float]) -> float:
        return self._share_of_counts(self._counts(thresholds))

    def _threshold_values(self) -> dict[str, float]:
        return {name: float(t.detach()) for name, t in self.thresholds.items()}

    # Masks on weights.

    @property
    def _holds(self) -> bool:
        """True where pruned weights are zero in training too: once the structure is final, and always in `gradual`."""
        return self.choice_is_final or self.settings.recipe in ("one_shot", "gradual")

    def _budget(self, step: int) -> float:
        ramp = max(1, self.ramped_at - self.measured_at)
        return budget_at((step - self.measured_at) / ramp, self.settings.budget)

    def _masks_of(self, structure: Structure) -> dict[str, Tensor]:
        return {
            name: living(getattr(structure, gate.kind)[gate.layer], gate.n, self.masks[name].device)
            for name, gate in self.gates.items()
        }

    def _set_masks(self, step: int, masks: dict[str, Tensor]) -> None:
        kept = {name: int(mask.sum()) for name, mask in masks.items()}
        if not self.course or self.course[-1]["kept"] != kept:
            self.course.append({"step": step, "share": self._share_of_counts(kept), "kept": kept})
        self.masks = masks

    @torch.no_grad()
    def _multiply(self, masks: Mapping[str, Tensor], members: bool) -> None:
        """Multiply the gated weights, or all members, by their masks, in place."""
        for name, gate in self.gates.items():
            if not masks[name].all():
                for part in gate.members if members else gate.gated:
                    part.weight.mul_(part.expand(masks[name])).add_(0.0)  # + 0.0 turns -0.0 into +0.0

    def _copies(self) -> dict[nn.Parameter, Tensor]:
        return {part.weight: part.weight.detach().clone() for gate in self.gates.values() for part in gate.gated}

    def _hold(self) -> None:
        self._multiply(self.masks, members=True)

    @torch.no_grad()
    def _unmask(self) -> None:
        for weight, values in self._unmasked.items():
            weight.copy_(values)
        self._unmasked = {}


def _layer_gates(model: nn.Module, gate_inputs: bool, outputs: bool) -> dict[str, Gate]:
    """Return the gates of heads and rows of each layer, and those of the output rows of O and FFN2.

    Args:
        gate_inputs: masks multiply the rows of Q, K, V and FFN1 and their biases, as in the paper; otherwise the
            columns of O and FFN2, which cuts a head's or row's output.
    """
    gates = {}
    for i, block in enumerate(find_blocks(model)):
        width = block.head_width
        into_heads = [part for layer in (block.query, block.key, block.value) for part in _rows(layer, width)]
        of_heads = [Part(block.output.weight, 1, width)]
        into_rows, of_rows = _rows(block.ffn1, 1), [Part(block.ffn2.weight, 1, 1)]
        for kind, n, first, second in (
            ("heads", block.n_heads, into_heads, of_heads),
            ("rows", block.n_rows, into_rows, of_rows),
        ):
            gated = first if gate_inputs else second
            gates[f"{i}.{kind}"] = Gate(kind, i, n, tuple(gated), (*first, *second))
        if outputs:
            for kind, layer in (("o_outputs", block.output), ("ffn2_outputs", block.ffn2)):
                parts = tuple(_rows(layer, 1))
                gates[f"{i}.{kind}"] = Gate(kind, i, layer.out_features, parts, parts)
    return gates


def _rows(layer: nn.Linear, width: int) -> list[Part]:
    biases = [Part(layer.bias, 0, width)] if layer.bias is not None else []
    return [Part(layer.weight, 0, width), *biases]


def _block_gates(targets: dict[str, nn.Parameter], side: int) -> dict[str, Gate]:
    """Return a gate of blocks for each matrix. Raises UserError for a matrix that does not divide into blocks."""
    gates = {}
    for i, (name, W) in enumerate(targets.items()):
        if W.shape[0] % side or W.shape[1] % side:
            raise UserError(
                f"{name}: a matrix of shape {tuple(W.shape)} does not divide into blocks of {side}x{side}; shrink the "
                f"model with multiple={side} first, or take a smaller block"
            )
        parts = (Part(W, None, side),)
        gates[name] = Gate("blocks", i, W.numel() // side**2, parts, parts)
    return gates


def _schedule(optimizer: Any) -> float:
    """Return the factor that the Trainer's schedule puts on the learning rate at this step."""
    group = optimizer.param_groups[0]
    return group["lr"] / group["initial_lr"] if group.get("initial_lr") else 1.0
