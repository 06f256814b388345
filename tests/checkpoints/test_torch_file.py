"""Files of torch.save without torch: what it writes is read, all else refused, nothing executed."""

import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from torch_writer import Tensor, dumps, save

from jaxchat.checkpoints.torch_file import read_torch
from jaxchat.errors import ArtifactError

GOLDEN = Path(__file__).parent.parent / "golden"
ONE = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSORS = {
    "one": ONE,
    "half": ONE.astype(np.float16),
    "brain": ONE.astype(jnp.bfloat16),
    "whole": np.arange(4),
    "lone": np.array([2.5], np.float32),
    "none": np.zeros((0, 3), np.float32),
}


def refused(path):
    """The one sentence with which a file is refused."""
    with pytest.raises(ArtifactError) as caught:
        read_torch(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tensors_of_every_type_are_read(tmp_path):
    found = read_torch(save(tmp_path / "a.pt", TENSORS))
    assert found.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("preset", ["classic", "modern"])
def test_what_torch_itself_wrote_is_read(preset):
    folder = GOLDEN / f"nanochat_checkpoint_{preset}/chatsft_checkpoints/d2"
    found = read_torch(folder / "model_000007.pt")
    assert found["transformer.wte.weight"].dtype == jnp.bfloat16
    assert found["lm_head.weight"].dtype == np.float32
    assert all(np.isfinite(array.astype(np.float32)).all() for array in found.values())


def test_a_tensor_may_be_part_of_a_storage(tmp_path):
    part = Tensor(0, ONE, offset=3, size=(3,), stride=(1,))
    path = save(tmp_path / "a.pt", {"x": ONE}, data=dumps(OrderedDict(part=part)))
    np.testing.assert_array_equal(read_torch(path)["part"], [3, 4, 5])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"offset": 1}, "larger than its storage"),
        ({"offset": -1}, "not of whole numbers"),
        ({"size": (2, 2**61)}, "not contiguous"),
        ({"size": (2**61, 3)}, "larger than its storage"),
        ({"size": (2**70, 3)}, "not of whole numbers"),
        ({"size": (2.0, 3)}, "not of whole numbers"),
        ({"size": (True, 3)}, "not of whole numbers"),
        ({"size": (10**6, 10**6), "stride": (0, 0)}, "not contiguous"),
        ({"stride": (1, 2)}, "not contiguous"),
        ({"stride": (3,)}, "not contiguous"),
        ({"size": (1,) * 9, "stride": (1,) * 9}, "a tensor of 9 axes"),
        ({"count": 10**12}, "its storage 0 are not there, or not as many"),
        ({"count": -1}, "without a size"),
    ],
)
def test_tensors_that_claim_more_than_there_is_are_refused(tmp_path, changed, sentence):
    data = dumps(OrderedDict(x=Tensor(0, ONE, **changed)))
    assert sentence in refused(save(tmp_path / "a.pt", {"x": ONE}, data=data))


@pytest.mark.parametrize("key", ["../../etc/passwd", "0/../0", "", "\u0661", "-1"])
def test_paths_are_no_keys(tmp_path, key):
    data = dumps(OrderedDict(x=Tensor(key, ONE)))
    assert "key is no number" in refused(save(tmp_path / "a.pt", {"x": ONE}, data=data))


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("value", [Evil(), {"x": Evil()}, OrderedDict(x=[Evil()])])
def test_a_malicious_pickle_is_refused_by_name(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    sentence = refused(save(tmp_path / "a.pt", {}, data=dumps(value)))
    assert "names 'posix.system'" in sentence
    assert "nothing of it was executed" in sentence
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", [[1], {"x": 1}, {"step": 3, "x": Tensor(0, ONE)}, "text", {1: 2}])
def test_what_is_no_state_dict_is_refused(tmp_path, value):
    assert "tensor" in refused(save(tmp_path / "a.pt", {"x": ONE}, data=dumps(value)))


def test_zip_bombs_and_other_odd_archives_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    assert "compressed" in refused(save(path, {"x": np.zeros(10**6, np.float32)}, compress=True))
    twice = save(path, TENSORS)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/data/0", b"")
    assert "one name" in refused(twice)
    assert "no data.pkl" in refused(save(path, TENSORS, extra=[("other/data.pkl", b"")]))
    assert "no data.pkl" in refused(save(path, TENSORS, root="a/b"))
    with zipfile.ZipFile(save(path, TENSORS, extra=[("x", b"")]), "a") as archive:
        archive.getinfo("x").file_size = 10**9
        archive.getinfo("x").compress_size = 10**9
        archive._didModify = True
    assert "claim more bytes" in refused(path)
    save(path, {}, data=b"", extra=[])
    assert "pickle" in refused(path)


def test_big_endian_files_are_refused(tmp_path):
    path = save(tmp_path / "a.pt", {})
    path.write_bytes(path.read_bytes().replace(b"little", b"bigbig"))
    assert refused(path)


def test_every_truncation_and_flipped_byte_of_the_data_is_noticed(tmp_path):
    path = save(tmp_path / "a.pt", TENSORS)
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        refused(path)
    place = whole.index(ONE.tobytes())
    path.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    assert "CRC" in refused(path)
    path.write_bytes(b"\x80\x02}." * 30)
    assert "no file of torch.save" in refused(path)
    assert "does not exist" in refused(tmp_path / "b.pt")
