"""A packed checkpoint: integer weights as bits, without their zeros, in a safetensors file.

`write_packed` turns a saved model whose set is `Integers` into a folder with the same config and tokenizer and the file
packed.safetensors; `load_packed` makes the model again, with the same weights to the bit. Layout of the file:

- Every tensor that is no target matrix is stored as it was.
- A target matrix `<name>` of shape (rows, columns), W = scales x codes, is stored as up to three tensors:

  `<name>.codes`, uint8: the codes, row by row, as numbers of `bits` bits in two's complement. With N:M only the N codes
  of each group that its positions name, in their order.
  `<name>.positions`, uint8, with N:M alone: for each of these codes its place in the group, 0 to M - 1, rising within
  the group, as a number of ceil(log2 M) bits. A group with fewer non-zeros names some of its zeros.
  `<name>.scales`, bfloat16, (rows,).

  Numbers of few bits are joined into one stream, the lowest bit first; bit i of the stream is bit i mod 8 (again the
  lowest first) of byte i // 8, and the last byte is filled with zeros.
- The metadata's entry `nxm_packed` is JSON: the version of this layout, the set as text, and the shape of each matrix.

2:4 int4 takes (2 x 4 + 2 x 2) / 4 = 3 bits per weight and 16 bits per row. The layout is for storage; kernels of sparse
hardware have layouts of their own, to be made from the loaded weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from nxm.errors import UserError
from nxm.files import new_folder
from nxm.models.shrink import from_tensors, read_structure
from nxm.sets import parse_set
from nxm.sets.base import ConstraintSet
from nxm.sets.integers import Integers
from nxm.sets.nm import NM
from nxm.sets.saved import load_config, load_matrices, model_class, read_pattern, stored_tensors
from nxm.sets.unstructured import Unstructured

FILE = "packed.safetensors"
VERSION = 1
SCALE_BITS = 16


def stored_bits(constraint: ConstraintSet | None, shape: tuple[int, int] | torch.Size) -> int:
    """Return the bits that a matrix of a set takes when stored, with all that is needed to read it.

    - Integers: codes, with N:M the positions of the N in each group, and a scale of 16 bits per row, as packed here.
    - N:M: N values in fp32 and their positions, ceil(log2 M) bits each, per group.
    - unstructured: the non-zeros in fp32 and one bit per entry that says where they are.
    - None, a dense matrix: 32 bits per entry.

    Raises:
        UserError: a set of another kind, whose form of storage is not known.
    """
    rows, columns = shape
    if constraint is None:
        return 32 * rows * columns
    constraint.validate(shape, "matrix")
    if isinstance(constraint, Integers):
        per_group = constraint.bits + (0 if constraint.mask is None else position_bits(constraint.mask))
        return _n_codes(constraint, shape) * per_group + SCALE_BITS * rows
    if isinstance(constraint, NM):
        groups = rows * columns // constraint.group_size
        return groups * constraint.n_nonzero * (32 + position_bits(constraint))
    if isinstance(constraint, Unstructured):
        return 32 * constraint.n_nonzero(shape) + rows * columns
    raise UserError(f"{constraint}: how a matrix of this set is stored is not known")


def position_bits(mask: NM) -> int:
    """Return the bits of a place in a group: 2 for groups of four."""
    return (mask.group_size - 1).bit_length()


def pack(W: Tensor, constraint: Integers) -> dict[str, Tensor]:
    """Return the stored form of a matrix: `codes`, `scales` and, with N:M, `positions`, as described above.

    Args:
        W: (rows, columns), fp32, in the set.

    Raises:
        UserError: W is not in the set.
    """
    codes, scales = constraint.decode(W)
    parts = {"scales": scales[:, 0].contiguous()}
    if constraint.mask is not None:
        groups = codes.reshape(-1, constraint.mask.group_size)
        nonzero_first = (groups == 0).sort(dim=1, stable=True).indices
        positions = nonzero_first[:, : constraint.mask.n_nonzero].sort(dim=1).values
        parts["positions"] = _join(positions, position_bits(constraint.mask))
        codes = groups.gather(1, positions)
    parts["codes"] = _join(codes, constraint.bits)
    return parts


def unpack(parts: Mapping[str, Tensor], constraint: Integers, shape: tuple[int, int]) -> Tensor:
    """Return the matrix that `pack` stored, fp32 on the CPU: the same to the bit."""
    n = _n_codes(constraint, shape)
    codes = _split(parts["codes"], constraint.bits, n)
    codes = torch.where(codes > constraint.largest, codes - 2**constraint.bits, codes)
    if constraint.mask is not None:
        n_nonzero, group_size = constraint.mask.n_nonzero, constraint.mask.group_size
        positions = _split(parts["positions"], position_bits(constraint.mask), n).reshape(-1, n_nonzero)
        groups = torch.zeros(len(positions), group_size, dtype=torch.long)
        codes = groups.scatter_(1, positions, codes.reshape(-1, n_nonzero))
    return codes.reshape(shape) * parts["scales"].float()[:, None] + 0.0  # + 0.0: no -0.0


def write_packed(folder: Path, out: Path) -> int:
    """Write a saved model as a packed checkpoint, after comparing the weights that are read back with the model's.

    Args:
        folder: a `from_pretrained` folder whose config.json names a set of integers.
        out: the folder to write, new or empty.

    Returns: the size of packed.safetensors in bytes.

    Raises:
        UserError: the folder holds no such model, a matrix has left its set, or `out` holds anything; nothing is
            written then.
    """
    pattern = read_pattern(load_config(folder))
    if pattern is None or not isinstance(pattern[0], Integers):
        found = "no set" if pattern is None else f"the set {pattern[0]}"
        raise UserError(f"{folder}: config.json names {found}; a packed checkpoint stores integers such as 2:4 int4")
    constraint, names = pattern
    tensors = load_matrices(folder, list(stored_tensors(folder)))
    if missing := set(names) - tensors.keys():
        raise UserError(
            f"{folder}: its files have no matrix '{min(missing)}', which config.json names: "
            "models that transformers saves under other names than they have in memory cannot be packed"
        )
    matrices = {name: tensors.pop(name) for name in names}
    for name, W in matrices.items():
        if not constraint.contains(W):
            raise UserError(
                f"{folder}: {name}, {W.dtype}, is not {constraint}; was the model trained on after it was made so, or "
                "saved in another precision than fp32?"
            )
        tensors |= {f"{name}.{part}": tensor for part, tensor in pack(W, constraint).items()}
    described = {
        "version": VERSION,
        "set": str(constraint),
        "shapes": {name: list(W.shape) for name, W in matrices.items()},
    }
    with new_folder(out, refusal=lambda folder: "is not empty", source=folder) as partial:
        for path in folder.iterdir():
            if path.is_file() and ".safetensors" not in path.suffixes:  # neither weights nor the index of shards
                shutil.copy2(path, partial)
        save_file(tensors, partial / FILE, metadata={"format": "pt", "nxm_packed": json.dumps(described)})
        again = read_packed(partial)
        assert all(torch.equal(again[name], W) for name, W in matrices.items()), f"{out}: weights changed when packed"
        return (partial / FILE).stat().st_size


def read_packed(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a packed checkpoint by name, the matrices in fp32: the state dict of its model.

    Raises:
        UserError: packed.safetensors is missing, damaged, or written by another version.
    """
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            described: dict[str, Any] = json.loads((file.metadata() or {}).get("nxm_packed", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a folder written by write_packed") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from None
    if described.get("version") != VERSION:
        raise UserError(f"{path}: nxm_packed is version {described.get('version')}, this nxm reads version {VERSION}")
    constraint = parse_set(described["set"])
    assert isinstance(constraint, Integers)
    for name, shape in described["shapes"].items():
        stored = {part: tensors.pop(f"{name}.{part}", None) for part in ("codes", "positions", "scales")}
        tensors[name] = unpack({part: t for part, t in stored.items() if t is not None}, constraint, tuple(shape))
    return tensors


def load_packed(folder: Path) -> PreTrainedModel:
    """Return the model of a packed checkpoint, on the CPU in eval mode, with the weights that were packed.

    Raises:
        UserError: as `read_packed`, or transformers does not have the class that config.json names.
    """
    config = load_config(folder)
    architecture = model_class(config)
    if architecture is None:
        named = (config.architectures or ["none"])[0]
        raise UserError(f"{folder}: config.json names the model class '{named}', which transformers does not have")
    if read_structure(config) is not None:
        return from_tensors(config, read_packed(folder), str(folder))
    return architecture.from_pretrained(None, config=config, state_dict=read_packed(folder)).eval()


def _n_codes(constraint: Integers, shape: tuple[int, int] | torch.Size) -> int:
    """Return how many codes of a matrix are stored."""
    entries = shape[0] * shape[1]
    mask = constraint.mask
    return entries if mask is None else entries // mask.group_size * mask.n_nonzero


def _join(numbers: Tensor, bits: int) -> Tensor:
    """Return the lowest `bits` bits of each number as one stream, uint8."""
    flat = numbers.reshape(-1).to(torch.int16).numpy().view(np.uint16)
    stream = (flat[:, None] >> np.arange(bits, dtype=np.uint16)) & 1
    return torch.from_numpy(np.packbits(stream.astype(np.uint8), bitorder="little"))


def _split(stream: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` unsigned numbers of a stream, int64."""
    separate = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(separate.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64)))
