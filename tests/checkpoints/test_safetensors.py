"""Files of safetensors: what we write and read, beside what the package does."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.checkpoints.tensors import (
    INDEX,
    SAFETENSORS,
    read_safetensors,
    read_tensors,
    write_safetensors,
)
from jaxchat.errors import ArtifactError

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.arange(3).astype(jnp.bfloat16),
    "half": np.arange(3, dtype=np.float16),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(2.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "whole": np.arange(5),
    "flag": np.array([True, False]),
}


def refused(path):
    with pytest.raises(ArtifactError) as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raw(path, header, data=b""):
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_what_is_written_is_read(tmp_path):
    write_safetensors(tmp_path / "a", TENSORS, {"one": "two"})
    found, metadata = read_safetensors(tmp_path / "a")
    assert metadata == {"one": "two"}
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0


def test_every_bfloat16_comes_back_to_the_bit(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    write_safetensors(tmp_path / "a", {"x": bits.view(jnp.bfloat16).T}, {})
    found = read_safetensors(tmp_path / "a")[0]["x"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.view(np.uint16), bits.T)


def test_no_tensors_at_all(tmp_path):
    write_safetensors(tmp_path / "a", {}, {})
    assert read_safetensors(tmp_path / "a") == ({}, {})


def test_the_reference_reads_ours_and_ours_the_references(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    plain = {name: a for name, a in TENSORS.items() if a.dtype != jnp.bfloat16 and a.size}
    write_safetensors(tmp_path / "a", plain, {"format": "pt"})
    for name, array in reference.load_file(tmp_path / "a").items():
        np.testing.assert_array_equal(array, plain[name])
    contiguous = {name: np.ascontiguousarray(a) for name, a in plain.items()}
    reference.save_file(contiguous, tmp_path / "b", {"by": "it"})
    found, metadata = read_safetensors(tmp_path / "b")
    assert metadata == {"by": "it"}
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array.reshape(found[name].shape))


@pytest.mark.parametrize(
    ("header", "size", "sentence"),
    [
        ({"x": entry(0, 4)}, 3, "not fully covered"),
        ({"x": entry(0, 4)}, 5, "not fully covered"),
        ({"x": entry(4, 8)}, 8, "invalid offset for tensor"),
        ({"x": entry(0, 4), "y": entry(0, 4)}, 4, "invalid offset for tensor"),
        ({"x": entry(0, 4), "y": entry(8, 12)}, 12, "invalid offset for tensor"),
        ({"x": entry(0, 8)}, 8, "invalid shape, data type, or offset"),
        ({"x": entry(0, 4, (2**40, 2**40))}, 4, "overflow computing buffer size"),
        ({"x": entry(0, 4, (-1,))}, 4, "integer `-1`, expected usize"),
        ({"x": entry(0, 4, (1.0,))}, 4, "floating point `1.0`, expected usize"),
        ({"x": entry(0, 4, (True,))}, 4, "boolean `true`, expected usize"),
        ({"x": entry(8, 4)}, 4, "invalid offset for tensor"),
        ({"x": entry(0, 4, (4,), "F8_E4M3")}, 4, "the type F8_E4M3"),
        ({"x": entry(0, 4, dtype="F8_E4M3")}, 4, "invalid shape, data type, or offset"),
        ({"x": {"dtype": "F32", "shape": [1]}}, 4, "missing field `data_offsets`"),
        ({"x": 1}, 0, "invalid type: integer `1`"),
        ({"__metadata__": {"a": 1}}, 0, "expected a string"),
        ([], 0, "invalid type: sequence"),
        (b"{", 0, "EOF while parsing"),
        (b"{{", 0, "key must be a string"),
        (b'{"a":' * 9_000, 0, "damaged"),
        (b'{"x":1,"x":2}', 0, "invalid type: integer `1`"),
        (b"{%s,%s}" % ((b'"x":' + json.dumps(entry(0, 4)).encode(),) * 2), 4, "a name twice"),
        ({"x": entry(0, 4, (1,) * 70)}, 4, "maximum supported dimension"),
        ({"x": entry(0, 0, (0, 2**62))}, 0, "array is too big"),
    ],
)
def test_headers_that_are_wrong_are_refused(tmp_path, header, size, sentence):
    assert sentence in refused(raw(tmp_path / "a", header, bytes(size)))


def test_lengths_that_are_wrong_are_refused(tmp_path):
    path = tmp_path / "a"
    lengths = (2**63, 101 << 20, 3, 0)
    for data in (b"", b"\x05", *(n.to_bytes(8, "little") + b"{}" for n in lengths), bytes(8)):
        path.write_bytes(data)
        refused(path)
    assert "does not exist" in refused(tmp_path / "b")


def in_two(folder, **changed):
    """A model in two files."""
    names = sorted(TENSORS)
    places = {}
    for number, some in enumerate((names[:3], names[3:])):
        file = f"model-{number}.safetensors"
        write_safetensors(folder / file, {name: TENSORS[name] for name in some}, {})
        places |= dict.fromkeys(some, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places | changed}))


def test_a_model_in_several_files_is_read(tmp_path):
    in_two(tmp_path)
    assert read_tensors(tmp_path)[0].keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"more": "model-0.safetensors"}, "does not hold the tensors"),
        ({"b": "model-1.safetensors"}, "does not hold the tensors"),
        ({"b": "model-2.safetensors"}, "does not"),
        ({"b": "../model-0.safetensors"}, "no safetensors"),
        ({"b": "/etc/passwd"}, "no safetensors"),
        ({"b": 3}, "no safetensors"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, changed, sentence):
    in_two(tmp_path, **changed)
    with pytest.raises(ArtifactError, match=sentence):
        read_tensors(tmp_path)


def test_an_index_that_is_none_is_refused(tmp_path):
    for text in ("[]", "{}", '{"weight_map": []}', "{"):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(ArtifactError):
            read_tensors(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(ArtifactError, match=f"{SAFETENSORS} does not exist"):
        read_tensors(tmp_path)
