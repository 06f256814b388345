"""Files of tensors in the safetensors format (github.com/huggingface/safetensors).

Eight bytes with the length of a header, the header in JSON (name -> type, shape, place), then the
numbers, without gaps. Nothing in it can be executed. Of our own, for the package has no bfloat16
for NumPy and holds all of what it writes in memory a second time.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a model in several files
MAX_HEADER = 100 << 20  # bytes, as the reference implementation has it
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

Tensors = dict[str, np.ndarray]


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes tensors, one after the other in the order of their names, and onto the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        code = _CODES[tensors[name].dtype]
        header[name] = {
            "dtype": code,
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def read_model(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a model's folder, in one file or in several that an index names.

    Raises ArtifactError, in one sentence, for files that are missing, damaged or contradictory.
    """
    if (folder / FILE).exists() or not (folder / INDEX).exists():
        return read_safetensors(folder / FILE)
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ArtifactError(f"{folder / INDEX} has no weight_map, which says where tensors are.")
    tensors: Tensors = {}
    told: dict[str, str] = {}
    for name in sorted(map(str, set(map(str, places.values())))):
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise ArtifactError(f"{folder / INDEX} names the file {name[:100]!r}, no safetensors.")
        found, metadata = read_safetensors(folder / name)
        told |= metadata
        if {key for key, file in places.items() if file == name} != found.keys():
            raise ArtifactError(f"{folder / name} does not hold the tensors that {INDEX} says.")
        tensors |= found
    return tensors, told


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file, mapped and not yet read, and its metadata.

    Raises ArtifactError, in one sentence, for a file that is missing or not of the format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise ValueError("its header is longer than the file or the format allow")
            header = json.loads(file.read(length), object_pairs_hook=_once)
        return _tensors(path, header, 8 + length, size)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200].removesuffix(".")
        raise ArtifactError(
            f"{path} is damaged, cut off or no safetensors file ({reason}); get it again."
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _tensors(path: Path, header: Any, start: int, size: int) -> tuple[Tensors, dict[str, str]]:
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is no table of strings")
    placed = sorted((*_place(name, entry), name) for name, entry in header.items())
    end = 0
    for first, last, name in placed:
        if first != end:
            raise ValueError(f"the tensor {name[:100]} does not begin where the one before ends")
        end = last
    if start + end != size:
        raise ValueError(f"its tensors take {end:,} bytes, but {size - start:,} are there")
    if not end:
        return {n: np.empty(e["shape"], DTYPES[e["dtype"]]) for n, e in header.items()}, metadata
    data = np.memmap(path, np.uint8, mode="r", offset=start)
    tensors: Tensors = {}
    for first, last, name in placed:
        entry = header[name]
        tensors[name] = data[first:last].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends, once its entry is seen to be sound."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"the tensor {name[:100]} has no type, shape or place")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"the tensor {name[:100]} has the type {str(entry['dtype'])[:20]!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    whole = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in whole) or len(offsets) != 2:
        raise ValueError(f"the tensor {name[:100]} has a shape or place that is not whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[entry["dtype"]].itemsize:
        raise ValueError(f"the tensor {name[:100]} has more or fewer bytes than its shape takes")
    return offsets[0], offsets[1]
