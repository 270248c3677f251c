"""Trained models as the exports take them: loaded, with their patterns asserted and inputs to compare outputs on."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nxm.errors import UserError
from nxm.files import DISK_ERRORS, Refusal, check_place, check_room, new_file, new_folder
from nxm.models.activations import Claimed, quantise_inputs, read_ranges
from nxm.models.load import load
from nxm.sets.base import ConstraintSet
from nxm.sets.saved import Claim, load_config, model_class, read_patterns, report

Example = str | tuple[str, str]
Answer = Callable[[Mapping[str, Tensor]], Mapping[str, np.ndarray]]  # the model's inputs by name -> outputs by name

Judge = Callable[[Answer], None]  # raises UserError for an export that must not be written

MARK = "nxm_export"  # in the files and folders of exports, by which `--force` knows them
UNLIMITED = 2**31 - 1  # the maximal length of models without one

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
        claims: the constraint sets and the names of their matrices according to config.json; []: a dense model.
        activations: the integer activations that it was trained with; None: real ones. `model` computes with real ones.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    claims: list[Claim]
    activations: Claimed | None = None

    @property
    def sparse(self) -> list[str]:
        """The names of the matrices that have a pattern."""
        return [name for _, names in self.claims for name in names]

    @property
    def max_length(self) -> int:
        """The largest number of tokens that the model can read; `UNLIMITED` if neither it nor its tokenizer has one."""
        limits = [self.tokenizer.model_max_length, UNLIMITED]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is not None and positions > 0:  # XLNet, which has no limit, says -1
            limits.append(positions)
        for name, module in self.model.named_modules():
            # RoBERTa and its relatives number positions from padding_idx + 1: 514 positions are 512 tokens
            positions = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
            if positions and module.padding_idx is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)
        return int(min(limits))

    @property
    def fp32_bytes(self) -> int:
        """The size of the weights in fp32."""
        return 4 * sum(W.numel() for W in self.model.parameters())

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs that the model takes from its tokenizer."""
        accepted = inspect.signature(self.model.forward).parameters
        return [name for name in self.tokenizer.model_input_names if name in accepted]

    def encode(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return token ids and the model's other inputs, int64 `(examples, longest)`, padded to the longest example."""
        first, second = zip(*((e, None) if isinstance(e, str) else e for e in examples), strict=True)
        pairs = None if None in second else list(second)
        batch = self.tokenizer(
            list(first), pairs, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        accepted = inspect.signature(self.model.forward).parameters
        return {name: tensor for name, tensor in batch.items() if name in accepted}

    def dynamic_shapes(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
        """Return the dimensions that an exported program leaves open, by input: batch and length."""
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=self.max_length)
        return {name: {0: batch, 1: length} for name in inputs}

    def unsupported(self, reason: str) -> UserError:
        """Return the error for a model that an export does not support."""
        return UserError(
            f"{self.folder}: {type(self.model).__name__} is not supported by this export, because {reason}"
        )


def load_trained(folder: Path) -> Trained:
    """Load a folder that nxm or `save_pretrained` wrote, shrunk or packed or neither, with the head its config names.

    Raises:
        UserError: it is no model folder, transformers does not have its class, the model does not read sentences, its
            tokenizer cannot pad, or a matrix violates its pattern in config.json.
    """
    config = load_config(folder)
    architecture = model_class(config)
    if architecture is None:
        name = (config.architectures or ["none"])[0]
        raise UserError(f"{folder}: config.json names the model class '{name}', which transformers does not have")
    if architecture.main_input_name != "input_ids" or architecture.__name__.endswith("ForMultipleChoice"):
        reads = "several sentences per example"
        if architecture.main_input_name != "input_ids":
            reads = f"{architecture.main_input_name} (images, sound or other data)"
        raise UserError(
            f"{folder}: {architecture.__name__} is not supported by nxm export, because it reads {reads}; exports are "
            "for models that read one sentence or a pair"
        )
    claims = read_patterns(config)
    model = load(folder, torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{folder}: not a saved model and its tokenizer: {error}") from None
    if tokenizer.pad_token is None:
        raise UserError(
            f"{folder}: not supported by nxm export, because the tokenizer has no padding token, which batches of "
            "sentences need; set tokenizer.pad_token and model.config.pad_token_id, for example to those of the end of "
            "a sentence, and save both"
        )
    assert_claims(model, claims, folder)
    return Trained(folder, model.eval(), tokenizer, claims, claimed_activations(model, folder))


def claimed_activations(model: PreTrainedModel, folder: Path) -> Claimed | None:
    """Return the integer activations that config.json names. Raises UserError if they are not of this model."""
    claimed = read_ranges(model.config)
    if claimed is not None and (unknown := sorted(claimed.ranges.keys() - dict(model.named_parameters()).keys())):
        raise UserError(
            f"{folder}: config.json has a range of the input of '{unknown[0]}', which the model does not have"
        )
    return claimed


def assert_claims(model: PreTrainedModel, claims: Sequence[Claim], folder: Path) -> None:
    """Raise UserError unless the matrices obey config.json's claims; their -0.0 become 0.0.

    Packers count -0.0 as a value.
    """
    weights = dict(model.named_parameters())
    for constraint, names in claims:
        if missing := [name for name in names if name not in weights]:
            raise UserError(f"{folder}: the model has no matrix '{missing[0]}', which config.json calls {constraint}")
        assert_pattern({name: weights[name] for name in names}, constraint, str(folder))
        with torch.no_grad():
            for name in names:
                weights[name].add_(0.0)  # -0.0 + 0.0 is +0.0


def assert_pattern(weights: Mapping[str, Tensor], constraint: ConstraintSet, where: str) -> None:
    """Raise UserError, with their number, if matrices violate the pattern: a packer would silently drop values."""
    reports = report(weights, constraint)
    if endless := [matrix.name for matrix in reports if not matrix.finite]:
        raise UserError(f"{where}: {endless[0]} has NaN or infinite weights; did its training diverge?")
    broken = [matrix.name for matrix in reports if not matrix.holds]
    if broken:
        raise UserError(
            f"{where}: {len(broken)} of {len(weights)} matrices are not {constraint}, first {broken[0]}; "
            "was the model trained on after it was made sparse?"
        )


@contextlib.contextmanager
def without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Switch off the caches for generation, which a model would return beside its outputs."""
    switches = {name: getattr(model.config, name, None) for name in ("use_cache", "use_mems_eval")}
    switches = {name: value for name, value in switches.items() if value}
    for name in switches:
        setattr(model.config, name, False)
    try:
        yield
    finally:
        for name, value in switches.items():
            setattr(model.config, name, value)


@torch.inference_mode()
def outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the model's outputs by name (`logits`, ...), fp32."""
    answers = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return {name: value.float().cpu().numpy() for name, value in answers.items() if isinstance(value, Tensor)}


def own_outputs(trained: Trained, examples: Sequence[Example], rounded: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the model's own outputs on examples, with which those of its export are compared.

    Args:
        rounded: names of matrices whose inputs are rounded as in training, if the model has ranges.

    Raises:
        UserError: the model cannot be run on sentences alone, or its outputs have NaN or infinite entries.
    """
    inputs = trained.encode(examples)
    rounding = quantise_inputs(trained.model, only=rounded) if rounded and trained.activations else None
    try:
        found = outputs(trained.model, inputs)
    except Exception as error:  # of any model of transformers: what it lacks, it says in errors of many types
        raise trained.unsupported(f"it cannot be run on {' and '.join(inputs)} alone: {_cause(error)}") from error
    finally:
        if rounding is not None:
            rounding.remove()
    if not found:
        raise trained.unsupported("it has no outputs that are tensors")
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{trained.folder}: the model's own outputs ({name}) have NaN or infinite entries; did its training "
                "diverge?"
            )
    return found


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
    open_file: Callable[[Path], Answer],
    tolerance: float,
    what: str,
    *,
    room: float,
    is_own: Callable[[Path], bool],
    force: bool,
    judge: Judge | None = None,
    folder: bool = False,
    rounded: Collection[str] = (),
) -> float:
    """Write a file or a folder under a temporary name, compare its outputs with the model's, then rename it.

    Args:
        make: writes the file, or files into the folder.
        open_file: returns the written program, which takes the tokenizer's tensors.
        what: name of the export, for messages.
        room: bytes that `make` needs on the disk at most.
        is_own: returns whether an existing file or folder was written by this function.
        force: replace an existing one, if it is.
        folder: `path` becomes a folder.
        rounded: names of matrices whose inputs the export rounds by the ranges that the model was trained with, if it
            was; so does the model that it is compared with.
        judge: raises UserError for a program that must not be written (`nxm.export.score.make_judge`).

    Returns: the relative error of the outputs.

    Raises:
        UserError: `path` must not be replaced or cannot be written, the model is not supported, the error exceeds the
            tolerance, or `judge` refuses; nothing is written then.
    """
    rule = refusal(is_own, force)
    check_place(path, rule, trained.folder, folder=folder)
    check_room(path, room)
    expected = own_outputs(trained, examples, rounded)
    with new_folder(path, rule, trained.folder) if folder else new_file(path) as temporary:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the exporter prints half a graph where it fails
                make(temporary)
            program = open_file(temporary)
            found = program(trained.encode(examples))
        except UserError:
            raise
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise UserError(f"{path}: cannot be written: {error.strerror}") from error
            raise
        except Exception as error:  # exporters meet what they cannot convert with errors of many types
            raise trained.unsupported(f"the {what} cannot be made or run: {_cause(error)}") from error
        error = relative_error(found, expected)
        assert_agreement(error, tolerance, path, what)
        if judge is not None:
            judge(program)
    return error


def _cause(error: BaseException) -> str:
    """Return the first line of the first error in a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def refusal(is_own: Callable[[Path], bool], force: bool) -> Refusal:
    """Return the rule for an existing file or folder in the place of an export (see `nxm.files.Refusal`)."""

    def reason(out: Path) -> str | None:
        if not is_own(out):
            return "was not written by nxm export in this format"
        return None if force else "was written by an earlier export, which --force would replace"

    return reason
