"""Trained models as the exports take them: loaded, with their pattern asserted and inputs to compare outputs on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nxm.errors import UserError
from nxm.files import new_file
from nxm.sets.base import SparseSet
from nxm.sets.saved import load_config, read_pattern, report

Example = str | tuple[str, str]

# Pairs of everyday English sentences of different lengths, on which outputs are compared by default.
EXAMPLES: tuple[Example, ...] = (
    ("A plane is taking off.", "An air plane is taking off."),
    ("Rain fell.", "The dog slept under the table all afternoon."),
    ("Three men are playing chess in the park while a crowd watches them.", "Two men are playing chess."),
    ("Is the station far from here?", "How far is it to the station?"),
    (
        "The committee, which met twice last year, has not yet said whether the bridge will be built, repaired or "
        "given up, although the money for it was set aside long ago.",
        "Nobody knows yet what will become of the bridge.",
    ),
    ("Prices rose by 3.5 % in March.", "In March, prices fell."),
    ("She didn't like the film.", "The film was, in her view, a waste of two hours."),
    ("Water boils at a lower temperature on a mountain than at the sea.", "It is cold."),
)


@dataclass(frozen=True)
class Trained:
    """A loaded `from_pretrained` folder.

    Attributes:
        model: in fp32 on the CPU, in eval mode, without -0.0 in its sparse matrices.
        pattern: the constraint set and the names of its matrices according to config.json; None: a dense model.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pattern: tuple[SparseSet, list[str]] | None

    @property
    def max_length(self) -> int:
        """The largest number of tokens that the model can read."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        return min(self.tokenizer.model_max_length, positions)

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return token ids and the model's other inputs, int64 `(examples, longest)`, padded to the longest example."""
        first, second = zip(*((e, None) if isinstance(e, str) else e for e in examples), strict=True)
        pairs = None if None in second else list(second)
        batch = self.tokenizer(
            list(first), pairs, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        accepted = inspect.signature(self.model.forward).parameters
        return {name: tensor for name, tensor in batch.items() if name in accepted}


def load_trained(folder: Path) -> Trained:
    """Load a folder saved by `save_pretrained`, with the head that its config names.

    Raises:
        UserError: it is no model folder, transformers does not have its class, or a matrix violates the pattern in
            config.json.
    """
    config = load_config(folder)
    name = (config.architectures or ["none"])[0]
    architecture = getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        raise UserError(f"{folder}: config.json names the model class '{name}', which transformers does not have")
    try:
        model = architecture.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: not a saved model and its tokenizer: {error}") from None
    pattern = read_pattern(config)
    if pattern is not None:
        constraint, names = pattern
        weights = dict(model.named_parameters())
        if missing := [name for name in names if name not in weights]:
            raise UserError(f"{folder}: the model has no matrix '{missing[0]}', which config.json calls {constraint}")
        assert_pattern({name: weights[name] for name in names}, constraint, str(folder))
        with torch.no_grad():
            for name in names:
                weights[name].add_(0.0)  # -0.0 + 0.0 is +0.0; packers count -0.0 as a value
    return Trained(folder, model.eval(), tokenizer, pattern)


def assert_pattern(weights: Mapping[str, Tensor], constraint: SparseSet, where: str) -> None:
    """Raise UserError, with their number, if matrices violate the pattern: a packer would silently drop values."""
    broken = [matrix.name for matrix in report(dict(weights), constraint) if not matrix.holds]
    if broken:
        raise UserError(
            f"{where}: {len(broken)} of {len(weights)} matrices are not {constraint}, first {broken[0]}; "
            "was the model trained on after it was made sparse?"
        )


@torch.inference_mode()
def outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the model's outputs by name (`logits`, ...), fp32."""
    answers = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return {name: value.float().cpu().numpy() for name, value in answers.items() if isinstance(value, Tensor)}


def relative_error(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> float:
    """Return the largest ||found - reference|| / ||reference|| over the outputs; infinite if `found` has a NaN."""
    errors = [
        np.linalg.norm(found[name] - reference[name]) / max(np.linalg.norm(reference[name]), np.finfo(np.float32).tiny)
        for name in reference
    ]
    worst = float(np.max(errors))
    return worst if np.isfinite(worst) else float("inf")


def assert_agreement(error: float, tolerance: float, path: Path, what: str) -> None:
    """Raise UserError if the error of an export's outputs exceeds its tolerance."""
    if not error <= tolerance:
        raise UserError(
            f"{path}: not written: outputs of the {what} differ from the model's by {error:.1e} (relative), "
            f"more than the {tolerance:.0e} allowed"
        )


def write_compared(
    trained: Trained,
    path: Path,
    examples: Sequence[Example],
    make: Callable[[Path], None],
    answer: Callable[[Path, Mapping[str, Tensor]], dict[str, np.ndarray]],
    tolerance: float,
    what: str,
) -> float:
    """Write a file under a temporary name, compare its outputs with the model's, then rename it.

    Args:
        make: writes the file.
        answer: returns the file's outputs by name, given the tokenizer's tensors.
        what: name of the export, for messages.

    Returns: the relative error of the outputs.

    Raises:
        UserError: the error exceeds the tolerance; nothing is written then.
    """
    with new_file(path) as temporary:
        make(temporary)
        inputs = trained.encode(examples)
        error = relative_error(answer(temporary, inputs), outputs(trained.model, inputs))
        assert_agreement(error, tolerance, path, what)
    return error
