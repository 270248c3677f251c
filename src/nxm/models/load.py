"""Load a saved model in whichever form nxm wrote it: `nxm.load(folder)`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from nxm.errors import UserError, first_line
from nxm.models import shrink
from nxm.models.packed import is_packed, read_packed, stored_dtype
from nxm.sets.saved import load_config, model_class


def load(folder: str | Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Load a model from a folder saved by `save_pretrained`, shrunk or not, or from a packed checkpoint.

    Tensors come from safetensors, in one file or in shards; no pickle is read and no code from the folder is run.

    Args:
        dtype: of the weights, as torch.float16 or "float16"; "auto": that of the tensors in the files.

    Returns: the model on the CPU in eval mode, of the class that config.json names.

    Raises:
        UserError: a file is missing, damaged or (packed) edited, transformers has no such class, or the tensors do not
            have the sizes of config.json; or `dtype` is no type of weights.
    """
    dtype = shrink.read_dtype(dtype)
    folder = Path(folder)
    if not is_packed(folder):
        return shrink.load(folder, dtype)
    config, weights = load_config(folder), read_packed(folder)
    if isinstance(dtype, str):
        dtype = stored_dtype(config, weights)
    weights = shrink.cast(weights, dtype)
    if shrink.read_structure(config) is not None:
        return shrink.from_tensors(config, weights, str(folder))
    return _with_weights(config, weights, dtype, folder).eval()


def _with_weights(
    config: PretrainedConfig, weights: dict[str, Tensor], dtype: torch.dtype, folder: Path
) -> PreTrainedModel:
    """Return the model of a config with tensors by their names in files, which may be others than those in memory.

    Args:
        dtype: that of the tensors; config.json may name another.

    Raises:
        UserError: transformers has no such class, or a tensor is missing, unknown or of another size.
    """
    architecture = model_class(config)
    if architecture is None:
        name = (config.architectures or ["none"])[0]
        raise UserError(f"{folder}/config.json: architectures names '{name}', which is no model of transformers")
    try:
        model, loading = architecture.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder}: transformers cannot load this model: {first_line(error)}") from None
    problems = {
        "lacks '{}'": loading["missing_keys"],
        "has '{}', which is unknown": loading["unexpected_keys"],
        "has '{}' in another size than config.json asks for": [name for name, *_ in loading["mismatched_keys"]],
    }
    for problem, names in problems.items():
        if names:
            raise UserError(
                f"{folder}: not the tensors of {architecture.__name__}: the folder {problem.format(min(names))}"
            )
    return model
