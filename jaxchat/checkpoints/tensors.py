"""What the formats of models share: safetensors files, and tensors as our tree of parameters.

Other projects name a tensor by one string and their matrices are [out, in]; ours are named by a
path and are [in, out]. What a parameter is called is the business of each format.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxchat.checkpoints.pickles import PICKLED_TOKENIZER, read_pickled_tokenizer
from jaxchat.config.schema import ModelConfig, RunConfig
from jaxchat.errors import ArtifactError, first_line
from jaxchat.model.gpt import Params, param_shapes
from jaxchat.paths import read_json
from jaxchat.tokenizer import Tokenizer
from jaxchat.tokenizer.huggingface import OWN_FILE

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a model in several files
VOCAB_TILE = 64  # to a multiple of which vocabularies are padded
WEIGHT_DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float16, jnp.bfloat16))  # fit float32
# the types of numbers: in safetensors, in torch, and here
TYPES = (
    ("F64", "Double", np.float64),
    ("F32", "Float", np.float32),
    ("F16", "Half", np.float16),
    ("BF16", "BFloat16", jnp.bfloat16),
    ("I64", "Long", np.int64),
    ("I32", "Int", np.int32),
    ("I16", "Short", np.int16),
    ("I8", "Char", np.int8),
    ("U8", "Byte", np.uint8),
    ("BOOL", "Bool", np.bool_),
)
_DTYPES: Mapping[str, np.dtype[Any]] = {code: np.dtype(kind) for code, _, kind in TYPES}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}

Tensors = dict[str, np.ndarray]
NameOf = Callable[[tuple[str, ...]], str]  # the format's name of the parameter at a path


@dataclass(frozen=True)
class ForeignModel:
    """A model read from files of any format: weights, architecture and tokenizer."""

    format: str  # of its files, for people
    params: Params  # our tree, of float32 NumPy arrays
    model: ModelConfig
    tokenizer: Tokenizer  # the one it was trained with
    stage: str  # of MODELS, as far as the files say; "" where they do not
    files: Mapping[str, str]  # names and sha256 of the files that were read
    notes: tuple[str, ...] = ()  # what a user should know of how they were read
    config: RunConfig | None = None  # of the whole run, where the files have it
    preset: str = "classic"  # of the architecture, where they have none


def find_tokenizer(folders: Sequence[Path]) -> tuple[Tokenizer, Path]:
    """The tokenizer of the first folder that has one in any of the safe formats, and its file.

    Raises ArtifactError when none has, TokenizerError when it cannot be used.
    """
    readers: Mapping[str, Callable[[Path], Tokenizer]] = {
        OWN_FILE: lambda path: Tokenizer.load(path.parent),
        "tokenizer.json": Tokenizer.from_huggingface,
        PICKLED_TOKENIZER: read_pickled_tokenizer,
    }
    for path in (folder / file for folder in folders for file in readers):
        if path.is_file():
            return readers[path.name](path), path
    *others, last = readers
    raise ArtifactError(
        f"there is no tokenizer in {' or '.join(map(str, folders))} ({', '.join(others)} or "
        f"{last}); name the folder that has it with --tokenizer."
    )


def to_params(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, name_of: NameOf, *, flip: bool = True
) -> Params:
    """Tensors as our tree of float32 NumPy arrays, padding of the vocabulary removed.

    `flip`: their matrices are [out, in]. Raises ValueError when a tensor is missing, left over, of
    a shape or type that `config` does not have, or holds a number that is not finite.
    """
    left = set(tensors)
    if config.n_layer > len(left):  # before a tree of that many layers is made
        raise ValueError(f"the config has {config.n_layer:,} layers, for {len(left):,} tensors.")

    def convert(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        keys = tuple(key.key for key in path)
        name = name_of(keys)
        if name not in tensors:
            raise ValueError(
                f"the checkpoint has no tensor {name}; its architecture is not the one of the "
                "config: compare their switches (value_embeds, smear, ...) and depth."
            )
        left.discard(name)
        if tensors[name].dtype not in WEIGHT_DTYPES:
            raise ValueError(
                f"the tensor {name} is of the type {tensors[name].dtype}; weights are float32, "
                "bfloat16 or float16."
            )
        value = np.asarray(tensors[name], np.float32)
        value = _our_layout(value, keys, config.vocab_size) if flip else value
        if value.shape != leaf.shape:
            raise ValueError(
                f"the tensor {name} is {tensors[name].shape} in the checkpoint, which makes "
                f"{value.shape} here, but the config wants {leaf.shape}."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"the tensor {name} holds numbers that are not finite.")
        return value

    params: Params = jax.tree_util.tree_map_with_path(convert, param_shapes(config))
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise ValueError(
            f"the checkpoint has tensors that the config has no place for: {sorted(left)[:5]}"
            f"{more}; compare their switches (value_embeds, smear, ...) and depth."
        )
    return params


def from_params(
    params: Params, name_of: NameOf, dtype: np.dtype[Any], *, flip: bool = True
) -> Tensors:
    """Our tree as tensors of `dtype`; with `flip`, matrices are [out, in]."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = tuple(key.key for key in path)
        value = np.asarray(leaf).astype(dtype, copy=False)
        found[name_of(keys)] = value.T if flip and keys[-1] == "kernel" else value
    return found


def _our_layout(value: np.ndarray, path: tuple[str, ...], vocab_size: int) -> np.ndarray:
    over_vocabulary = path[-1] == "embedding" or path[0] == "lm_head"
    if over_vocabulary and len(value) == -(-vocab_size // VOCAB_TILE) * VOCAB_TILE:
        value = value[:vocab_size]
    if path[-1] == "kernel":
        return value.T
    if path[-1] in ("smear_lambda", "backout_lambda") and value.shape == (1,):
        return value.reshape(())
    return value


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Any) -> None:
    """Writes tensors in the order of their names, and flushes them onto the disk.

    The format is eight bytes with the length of a header, the header in JSON (name -> type, shape,
    place), then the numbers, without gaps. Of our own, for the package wants every matrix
    contiguous at once, so that an export that turns them takes 1.2 times the memory; here it is
    one after the other.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        shape, code = list(tensor.shape), _CODES[tensor.dtype]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def read_tensors(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a model's folder and their metadata, from one file or those of an index.

    Raises ArtifactError, in one sentence, for files that are missing, damaged or contradictory.
    """
    if (folder / SAFETENSORS).exists() or not (folder / INDEX).exists():
        return read_safetensors(folder / SAFETENSORS)
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ArtifactError(f"{folder / INDEX} has no weight_map, which says where tensors are.")
    tensors: Tensors = {}
    metadata: dict[str, str] = {}
    for name in sorted(set(map(str, places.values()))):
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
            raise ArtifactError(f"{folder / INDEX} names the file {name[:100]!r}, no safetensors.")
        found, more = read_safetensors(folder / name)
        if {key for key, file in places.items() if file == name} != found.keys():
            raise ArtifactError(f"{folder / name} does not hold the tensors that {INDEX} says.")
        tensors |= found
        metadata |= more
    return tensors, metadata


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file, mapped and not yet read, and its metadata.

    Raises ArtifactError, in one sentence, for a file that is missing or not of the format.
    """
    tensors: Tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:  # which checks types, shapes and places
            metadata = file.metadata() or {}
        data = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8:start].tobytes(), object_pairs_hook=_once)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"the tensor {name[:100]} has the type {entry['dtype']}")
            place = data[start:][slice(*entry["data_offsets"])]
            tensors[name] = place.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return tensors, metadata
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged, cut off or no safetensors file ({first_line(error)}); get it "
            "again."
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # the package takes the last
        raise ValueError("its header has a name twice")
    return found
