"""Reads a file of tensors that torch.save wrote, without torch and without executing anything.

The format (torch 1.6 and later) is a zip archive, not compressed: `NAME/data.pkl`, a pickle of the
dictionary, and `NAME/data/KEY`, the bytes of each storage that it refers to. The pickle is read by
`checkpoints.pickles`, which knows the few names that a state dict needs.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxchat.checkpoints.pickles import MAX_BYTES, Name, Names, RefusedPickle, read_pickle
from jaxchat.errors import ArtifactError, first_line

_STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
MAX_AXES = 8  # of a tensor; sizes of a million axes would take forever to multiply
_BROKEN = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # in elements
    shape: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by name. Raises ArtifactError, in one sentence, for all else."""
    try:
        with zipfile.ZipFile(path) as archive:
            root, names = _check(archive, path.stat().st_size)
            data = archive.read(f"{root}data.pkl")
            tensors = _state_dict(read_pickle(data, _NAMES, _storage))
            return {name: _array(t, archive, names, root) for name, t in tensors.items()}
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except RefusedPickle as error:
        raise ArtifactError(f"{path} cannot be imported: {error}.") from error
    except _BROKEN as error:
        raise ArtifactError(
            f"{path} is damaged, cut off, or no file of torch.save as torch 1.6 and later write it "
            f"({first_line(error)}); get it again."
        ) from error


def _check(archive: zipfile.ZipFile, size: int) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The folder inside of the archive, and its members. Raises ValueError for an odd archive."""
    members = archive.infolist()
    names = {member.filename: member for member in members}
    if len(names) != len(members):
        raise ValueError("two of its members have one name")
    if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
        raise ValueError("its members are compressed or encrypted, which torch never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members claim more bytes than the file has")
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if names[pickles[0]].file_size > MAX_BYTES:
        raise ValueError("its data.pkl is too large for a dictionary of tensors")
    order = f"{root}byteorder"
    if order in names and archive.read(order) != b"little":
        raise ValueError("its bytes are not in little-endian order")
    return root, names


def _state_dict(value: Any) -> dict[str, _Tensor]:
    if type(value) is not dict:
        raise RefusedPickle(f"it holds a {type(value).__name__}, not a dictionary of tensors")
    for name, tensor in value.items():
        if type(name) is not str or type(tensor) is not _Tensor:
            raise RefusedPickle(
                f"its entry {str(name)[:100]!r} is a {type(tensor).__name__}, not a tensor"
            )
    return value


def _array(
    tensor: _Tensor, archive: zipfile.ZipFile, names: dict[str, zipfile.ZipInfo], root: str
) -> np.ndarray:
    """A tensor's numbers, checked by the archive's checksums."""
    storage, member = tensor.storage, f"{root}data/{tensor.storage.key}"
    if member not in names or names[member].file_size != storage.count * storage.dtype.itemsize:
        raise ValueError(f"the bytes of its storage {storage.key} are not there, or not as many")
    flat = np.frombuffer(archive.read(member), storage.dtype)
    return flat[tensor.offset : tensor.offset + math.prod(tensor.shape)].reshape(tensor.shape)


def _storage(value: Any) -> _Storage:
    """What stands for torch's persistent id ("storage", type, key, device, elements)."""
    if type(value) is not tuple or len(value) != 5 or value[0] != "storage":
        raise RefusedPickle("its pickle refers to something that is no storage of torch's")
    kind, key, count = value[1], value[2], value[4]
    if type(kind) is not Name or kind.text not in _STORAGES:
        raise RefusedPickle("its pickle has a storage of an unknown type")
    if type(key) is not str or not key.isascii() or not key.isdecimal():
        raise RefusedPickle("its pickle has a storage whose key is no number")
    if type(count) is not int or count < 0:
        raise RefusedPickle("its pickle has a storage without a size")
    return _Storage(key, _STORAGES[kind.text], count)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> _Tensor:
    """What stands for torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, ...)."""
    if len(arguments) < 4 or type(arguments[0]) is not _Storage:
        raise RefusedPickle("its pickle has a tensor without a storage")
    storage, offset, shape, stride = arguments[:4]
    if isinstance(shape, tuple) and len(shape) > MAX_AXES:
        raise RefusedPickle(f"its pickle has a tensor of {len(shape)} axes")
    whole = [offset, *shape, *stride] if type(shape) is type(stride) is tuple else [None]
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in whole):
        raise RefusedPickle("its pickle has a tensor whose shape is not of whole numbers")
    expected, step = [], 1
    for size in reversed(shape):
        expected.append(step)
        step *= size
    strides = zip(shape, stride, expected[::-1], strict=False)
    odd = step and any(size > 1 and got != want for size, got, want in strides)
    if odd or len(shape) != len(stride):
        raise RefusedPickle("its pickle has a tensor that is not contiguous")
    if offset + step > storage.count:
        raise RefusedPickle("its pickle has a tensor that is larger than its storage")
    return _Tensor(storage, offset, shape)


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise RefusedPickle("its pickle has a dictionary that is made in an unusual way")
    return {}


_NAMES: Names = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    **dict.fromkeys(_STORAGES),
}
