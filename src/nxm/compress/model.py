"""The user's model: found on the disk or on the Hub, with the head that the labels need.

Weights come from safetensors alone; no pickle is read and no code from a model's repository is run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nxm.compress.examples import Examples
from nxm.compress.settings import ANSWERS, IMAGES, supported
from nxm.data.hub import open_repository
from nxm.data.settings import Source
from nxm.data.weights import check_tokenizer
from nxm.errors import UserError, first_line
from nxm.files import sha256_file
from nxm.models import shrink
from nxm.models.activations import forget_ranges
from nxm.models.packed import is_packed
from nxm.models.save import MODEL_FILES
from nxm.sets.saved import load_config, model_class, stored_tensors

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # of images
HEADS = {
    "token-classification": "ForTokenClassification",
    ANSWERS: "ForQuestionAnswering",
    IMAGES: "ForImageClassification",
}
LOADERS = {
    "token-classification": AutoModelForTokenClassification,
    ANSWERS: AutoModelForQuestionAnswering,
    IMAGES: AutoModelForImageClassification,
}
WITH_TEACHER = "WithTeacher"  # ends the names of DeiT's and LeViT's heads for inference alone, which have no loss
PROBLEMS = {
    "classification": "single_label_classification",
    IMAGES: "single_label_classification",
    "regression": "regression",
    "multi-label": "multi_label_classification",
}


@dataclass(frozen=True)
class Origin:
    """The user's model before it is loaded.

    Attributes:
        folder: holds config.json, safetensors and the tokenizer or the image processor.
        place: the folder, or the Hub's name with the commit.
        sha256: over the config and the weights.
    """

    folder: Path
    place: str
    config: PretrainedConfig
    sha256: str


def find_model(name: str, task: str = "classification") -> Origin:
    """Return the model in a folder, or that of the Hub, which is downloaded and compared with the Hub's checksums.

    Raises:
        UserError: there is no such folder and the Hub does not deliver, the folder has no safetensors, no tokenizer or
            (for images) no image processor, or the model reads something other than the task's data.
    """
    path = Path(name)
    if path.is_dir():
        folder, place = path, name
    elif path.exists() or name.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(name):
        raise UserError(f"model {name}: there is no such folder, and it is no name of a model on the Hub (owner/name)")
    else:
        folder, place = _from_hub(name, task)
    _check_files((entry.name for entry in folder.iterdir()), place)
    if is_packed(folder):
        raise UserError(f"{place}: is a packed checkpoint; give the model that was packed")
    config = load_config(folder)
    if shrink.read_structure(config) is not None:
        raise UserError(f"{place}: is a shrunk model, which nxm compress does not take; use the Trainer's callback")
    _check_kind(config, task, place)
    _check_processor((entry.name for entry in folder.iterdir()), task, place)
    digest = hashlib.sha256(sha256_file(folder / "config.json").encode())
    for file in sorted(set(stored_tensors(folder).values())):
        digest.update(sha256_file(file).encode())
    return Origin(folder, place, config, digest.hexdigest())


def _check_kind(config: PretrainedConfig, task: str, place: str) -> None:
    """Raise UserError unless the model reads what the task's rows are: texts or images."""
    architecture = model_class(config)
    if architecture is None:
        return
    reads, name = architecture.main_input_name, architecture.__name__
    if task == IMAGES and reads != "pixel_values":
        raise UserError(f"{place}: {name} reads {reads}, the data are images: give a model of images, such as a ViT")
    if task != IMAGES and reads == "pixel_values":
        raise UserError(
            f"{place}: {name} reads pixel_values (images), the data are texts; for images give a folder with one "
            f"sub-folder per class, or a table with a column of image files (--image); {supported()}"
        )
    if task != IMAGES and reads != "input_ids":
        raise UserError(f"{place}: {name} reads {reads} (images or sound); {supported()}")


def _from_hub(name: str, task: str) -> tuple[Path, str]:
    wanted = [*MODEL_FILES, *PROCESSOR_FILES, "LICENSE*"]
    try:
        repository = open_repository(Source(source="hub", name=name), "model")
    except UserError as error:
        if (cached := _from_cache(name)) is not None:
            return cached
        help_ = f"There is no local folder '{name}' either: download the model and give its path"
        raise UserError(f"{error}. {help_}") from None
    files = [file for file in repository.files if any(fnmatchcase(file, pattern) for pattern in wanted)]
    _check_files(files, repository.place)
    _check_processor(files, task, repository.place)
    return repository.obtain(files), repository.place


def _from_cache(name: str) -> tuple[Path, str] | None:
    """Return the latest copy of a model in the Hub's cache on this machine; None without one."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return None
    copies = [
        copy
        for repository in repositories
        if repository.repo_type == "model" and repository.repo_id == name
        for copy in repository.revisions
        if (copy.snapshot_path / "config.json").exists()
    ]
    if not copies:
        return None
    latest = max(copies, key=lambda copy: copy.last_modified)
    return latest.snapshot_path, f"{name}@{latest.commit_hash}"


def _check_files(names: Iterable[str], place: str) -> None:
    """Raise UserError unless the files of a model folder have config and safetensors."""
    names = set(names)
    if "config.json" not in names:
        raise UserError(f"{place}: no model folder: config.json is missing; save_pretrained writes it")
    if not names & {"model.safetensors", "model.safetensors.index.json", "packed.safetensors"}:
        pickled = sorted(name for name in names if re.fullmatch(r"[^/]*\.(bin|pt|pth|ckpt|h5|msgpack)", name))
        found = f"it has {', '.join(pickled)}" if pickled else "it has no weights"
        raise UserError(
            f"{place}: there is no model.safetensors; {found}. nxm reads safetensors and never a pickle (.bin, .pt): "
            "load the model where you trust it and save it with save_pretrained"
        )


def _check_processor(names: Iterable[str], task: str, place: str) -> None:
    """Raise UserError unless the files of a model folder have a vocabulary, or (for images) a processor's settings."""
    names = set(names)
    if task == IMAGES:
        if not names & set(PROCESSOR_FILES):
            raise UserError(
                f"{place}: there is no {PROCESSOR_FILES[0]}, which says how images become numbers; save the image "
                "processor of the model with save_pretrained"
            )
    elif not names & {"spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model"}:
        check_tokenizer(names, place)


def load_tokenizer(origin: Origin, task: str) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer.

    Raises:
        UserError: it cannot be read, has no padding token or more words than the model, or is not a fast one where
            words must be traced to tokens, or pads on the left where answers have positions.
    """
    # RoBERTa's tokenizers take a list of words only so
    spaced = (
        {"add_prefix_space": True} if task == "token-classification" and "roberta" in origin.config.model_type else {}
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            origin.folder, local_files_only=True, trust_remote_code=False, **spaced
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{origin.place}: the tokenizer cannot be read: {first_line(error)}") from None
    if tokenizer.pad_token is None:
        raise UserError(f"{origin.place}: the tokenizer has no padding token, which batches need; set one and save it")
    words = getattr(origin.config.get_text_config(), "vocab_size", len(tokenizer))
    if len(tokenizer) > words:
        raise UserError(
            f"{origin.place}: the tokenizer has {len(tokenizer)} words, the model {words}: they do not belong together"
        )
    if task in ("token-classification", ANSWERS) and not tokenizer.is_fast:
        raise UserError(f"{origin.place}: {task} needs a fast tokenizer (tokenizer.json)")
    if task == ANSWERS and tokenizer.padding_side != "right":
        raise UserError(f"{origin.place}: {task} needs a tokenizer that pads on the right; this one does on the left")
    return tokenizer


def load_image_processor(origin: Origin) -> BaseImageProcessor:
    """Return the model's image processor, as Pillow and numpy compute it on every machine.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return AutoImageProcessor.from_pretrained(
            origin.folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"{origin.place}: the image processor cannot be read: {first_line(error)}") from None


def fitting_classes(config: PretrainedConfig, examples: Examples) -> tuple[str, ...] | None:
    """Return the examples' classes in the order of a fine-tuned model's outputs; None if its head is for other labels.

    A head fits if the config names the class of a model for this task and
    - (question answering) always;
    - (regression) it has one output and is not for classes;
    - its labels have the examples' names, but for case; it may have further ones; or
    - the examples' names are 0 ... n - 1 for its n outputs; or both are without names of their own.
    """
    architecture = (config.architectures or [""])[0]
    if not architecture.endswith(HEADS.get(examples.task, "ForSequenceClassification")):
        return None
    if examples.task == ANSWERS:
        return ()
    problem = getattr(config, "problem_type", None)
    if examples.task == "regression":
        return () if config.num_labels == 1 and problem in (None, "regression") else None
    if problem not in (None, PROBLEMS.get(examples.task)) or (examples.task == "multi-label" and problem is None):
        return None
    own = [str(name) for _, name in sorted((config.id2label or {}).items())]
    by_name = {name.casefold(): name for name in examples.classes}
    if len(by_name) == len(examples.classes) and by_name.keys() <= {name.casefold() for name in own}:
        return tuple(by_name.get(name.casefold(), name) for name in own)
    numbers = tuple(str(i) for i in range(len(own)))
    return numbers if set(examples.classes) == set(numbers) else None


def load_start(origin: Origin, examples: Examples, fresh: bool, seed: int) -> PreTrainedModel:
    """Return the model in fp32 with a head for the examples' labels, whose names its config has.

    Args:
        fresh: the model has no such head; it is drawn by `seed`. For regression its bias starts at the mean label.

    Raises:
        UserError: transformers has no such head for this model, or its files are damaged.
    """
    set_seed(seed)
    loader: Any = LOADERS.get(examples.task, AutoModelForSequenceClassification)
    architecture = (origin.config.architectures or [""])[0]
    if architecture.endswith(WITH_TEACHER):
        loader = getattr(transformers, architecture.removesuffix(WITH_TEACHER))
    names = dict(enumerate(examples.classes)) if examples.classes else {0: "score"}
    if examples.task == ANSWERS:
        names = {0: "start", 1: "end"}
    try:
        model = loader.from_pretrained(
            origin.folder,
            num_labels=examples.num_labels,
            id2label=names,
            label2id={name: i for i, name in names.items()},
            problem_type=PROBLEMS.get(examples.task),
            ignore_mismatched_sizes=fresh,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{origin.place}: cannot be loaded for {examples.task}: {first_line(error)}") from None
    forget_ranges(model.config)
    if fresh and examples.task == "regression":
        heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
        nn.init.constant_(heads[-1].bias, sum(examples.labels) / len(examples))
    return model
