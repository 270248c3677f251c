"""A packed checkpoint: integer weights as bits, without their zeros, in a safetensors file.

`nxm.export.packed.write_packed` turns a saved model whose sets are `Integers` into a folder with the same config and
tokenizer and the file packed.safetensors; `nxm.load` makes the model again, with the same weights to the bit. Layout of
the file, which docs/integers.md describes byte by byte:

- Every tensor that is no matrix of integers is stored as it was.
- A matrix `<name>` of shape (rows, columns), W = scales x codes, is stored as two or three tensors:

  `<name>.codes`, uint8: the codes, row by row, as numbers of `bits` bits in two's complement. With N:M only the N codes
  of each group that its positions name, in their order.
  `<name>.positions`, uint8, with N:M alone: for each of these codes its place in the group, 0 to M - 1, rising within
  the group, as a number of ceil(log2 M) bits. A group with fewer non-zeros names some of its zeros.
  `<name>.scales`, bfloat16, (rows,).

  Numbers of few bits are joined into one stream, the lowest bit first; bit i of the stream is bit i mod 8 (again the
  lowest first) of byte i // 8, and the last byte is filled with zeros.
- The metadata's entry `nxm_packed` is JSON: the version of this layout, the shapes of the matrices by set, and a
  checksum of all this (`checksum`).

2:4 int4 takes (2 x 4 + 2 x 2) / 4 = 3 bits per weight and 16 bits per row. The layout is for storage; kernels of sparse
hardware have layouts of their own, to be made from the loaded weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig

from nxm.errors import UserError
from nxm.sets import parse_set
from nxm.sets.base import ConstraintSet
from nxm.sets.integers import Integers
from nxm.sets.nm import NM
from nxm.sets.saved import load_config, read_patterns
from nxm.sets.unstructured import Unstructured

FILE = "packed.safetensors"
METADATA = "nxm_packed"
VERSION = 1
SCALE_BITS = 16

Shapes = dict[str, dict[str, list[int]]]  # set as text -> name of a matrix -> its shape


def stored_bits(constraint: ConstraintSet | None, shape: tuple[int, ...] | torch.Size) -> int:
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


def unpack(parts: Mapping[str, Tensor], constraint: Integers, shape: Sequence[int], name: str = "matrix") -> Tensor:
    """Return the matrix that `pack` stored, fp32 on the CPU: the same to the bit.

    Raises:
        UserError: the parts are not the form of such a matrix, which `name` names in the message.
    """
    _check_parts(parts, constraint, shape, name)
    n = _n_codes(constraint, shape)
    codes = _split(parts["codes"], constraint.bits, n)
    codes = torch.where(codes > constraint.largest, codes - 2**constraint.bits, codes)
    if bool((codes < -constraint.largest).any()):
        raise UserError(f"{name}.codes: has the code {-constraint.largest - 1}; int{constraint.bits} has none below -L")
    if constraint.mask is not None:
        n_nonzero, group_size = constraint.mask.n_nonzero, constraint.mask.group_size
        positions = _split(parts["positions"], position_bits(constraint.mask), n).reshape(-1, n_nonzero)
        if bool((positions >= group_size).any()) or bool((positions.diff(dim=1) <= 0).any()):
            raise UserError(f"{name}.positions: are not {n_nonzero} rising places below {group_size} in every group")
        groups = torch.zeros(len(positions), group_size, dtype=torch.long)
        codes = groups.scatter_(1, positions, codes.reshape(-1, n_nonzero))
    return codes.reshape(*shape) * parts["scales"].float()[:, None] + 0.0  # + 0.0: no -0.0


def checksum(tensors: Mapping[str, Tensor], shapes: Shapes) -> str:
    """Return the sha256 of a packed file's content, as hexadecimal digits.

    It is over the shapes by set, as JSON with sorted keys and without spaces, and a newline; then, for each tensor in
    the order of the names, the line `<name> <dtype> <shape>` with PyTorch's name of the type and sizes joined by "x",
    and the bytes of its values as in the file.
    """
    digest = hashlib.sha256(json.dumps(shapes, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name} {dtype} {'x'.join(map(str, tensor.shape))}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def is_packed(folder: Path) -> bool:
    """Return whether a folder is a packed checkpoint.

    Raises:
        UserError: it has the weights unpacked as well, so that it is not clear which ones count.
    """
    if not (folder / FILE).exists():
        return False
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).exists():
            raise UserError(f"{folder}: holds both {FILE} and {name}, two models in one folder; remove one of them")
    return True


def read_packed(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a packed checkpoint by name, the matrices in fp32: the state dict of its model.

    Raises:
        UserError: packed.safetensors is missing, damaged, edited or written by another version, or its matrices are not
            those that config.json claims.
    """
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a folder written by nxm export --to packed") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or truncated ({error})") from None
    if written is None:
        raise UserError(f"{path}: no packed checkpoint: its metadata has no {METADATA}")
    shapes = _read_shapes(path, written, tensors)
    claims = read_patterns(load_config(folder))
    claimed = {name: str(constraint) for constraint, names in claims for name in names if _is_integers(constraint)}
    stored = {name: text for text, matrices in shapes.items() for name in matrices}
    if claimed != stored:
        name = min(name for name in claimed.keys() | stored.keys() if claimed.get(name) != stored.get(name))
        raise UserError(
            f"{folder}: config.json claims {claimed.get(name, 'no integers')} for {name}, {FILE} has "
            f"{stored.get(name, 'none')}: they do not belong together"
        )
    for text, matrices in shapes.items():
        constraint = parse_set(text)
        assert isinstance(constraint, Integers)
        for name, shape in matrices.items():
            parts = {
                part: tensors.pop(f"{name}.{part}") for part in _parts_of(constraint) if f"{name}.{part}" in tensors
            }
            try:
                tensors[name] = unpack(parts, constraint, shape, name)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    return tensors


def stored_dtype(config: PretrainedConfig, weights: Mapping[str, Tensor]) -> torch.dtype:
    """Return the type of the model that was packed: the widest of its tensors that are no matrices of integers.

    Those are read in fp32, whatever they were; in the model's own type they are the same numbers.

    Args:
        weights: as `read_packed` returns them.
    """
    matrices = {name for constraint, names in read_patterns(config) if _is_integers(constraint) for name in names}
    types = {W.dtype for name, W in weights.items() if W.is_floating_point() and name not in matrices}
    return functools.reduce(torch.promote_types, types) if types else torch.float32


def _read_shapes(path: Path, written: str, tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shapes by set that a file's metadata has. Raises UserError unless these and the tensors are intact."""
    try:
        described = json.loads(written)
        version = described["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata's {METADATA} cannot be read: {error!r}") from None
    if version != VERSION:
        raise UserError(f"{path}: {METADATA} is version {version}, this nxm reads version {VERSION}")
    try:
        shapes: Shapes = {
            text: {name: [int(rows), int(columns)] for name, (rows, columns) in matrices.items()}
            for text, matrices in described["shapes"].items()
        }
        other = [text for text in shapes if not _is_integers(parse_set(text))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its metadata's {METADATA} cannot be read: {error!r}") from None
    if other:
        raise UserError(f"{path}: {METADATA} names {other[0]}, which is no set of integers")
    if checksum(tensors, shapes) != described.get("sha256"):
        raise UserError(f"{path}: its content was changed after it was written (the sha256 in its metadata differs)")
    return shapes


def _check_parts(parts: Mapping[str, Tensor], constraint: Integers, shape: Sequence[int], name: str) -> None:
    """Raise UserError unless the parts of a matrix have the types, sizes and scales of the layout."""
    rows, columns = shape
    constraint.validate((rows, columns), name)
    n = _n_codes(constraint, shape)
    sizes = {"codes": n * constraint.bits, "scales": SCALE_BITS * rows}
    if constraint.mask is not None:
        sizes["positions"] = n * position_bits(constraint.mask)
    for part in _parts_of(constraint):
        if part not in parts:
            raise UserError(f"{name}.{part}: is missing")
        dtype = torch.bfloat16 if part == "scales" else torch.uint8
        length = rows if part == "scales" else -(-sizes[part] // 8)
        found = parts[part]
        if found.dtype != dtype or tuple(found.shape) != (length,):
            raise UserError(
                f"{name}.{part}: is {found.dtype} {tuple(found.shape)}; {constraint} of {rows}x{columns} has {dtype} "
                f"({length},)"
            )
        if part != "scales" and sizes[part] % 8 and int(found[-1]) >> sizes[part] % 8:
            raise UserError(f"{name}.{part}: has further bits behind the {sizes[part]} of {constraint}")
    scales = parts["scales"].float()
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise UserError(f"{name}.scales: has a scale that is negative, infinite or NaN")


def _parts_of(constraint: Integers) -> tuple[str, ...]:
    return ("codes", "scales") if constraint.mask is None else ("codes", "positions", "scales")


def _is_integers(constraint: ConstraintSet) -> bool:
    return isinstance(constraint, Integers)


def _n_codes(constraint: Integers, shape: Sequence[int]) -> int:
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
