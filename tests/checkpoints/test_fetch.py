"""Models from the hub, asked of a server on loopback that looks like it."""

from pathlib import Path

import pytest
from hub_server import COMMIT, Fault, HubServer

from jaxchat.data.download.web import WebError
from jaxchat.errors import ArtifactError
from jaxchat.runs import import_run
from jaxchat.runs.import_run import fetch_model

GOLDEN = Path(__file__).parent.parent / "golden"
NANOCHAT = GOLDEN / "nanochat_checkpoint_classic"


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        server.add_folder("owner/hugging", GOLDEN / "transformers_nanochat")
        files = {path.name: path.read_bytes() for path in NANOCHAT.rglob("*") if path.is_file()}
        for name in ("model_000007.pt", "meta_000007.json"):
            files[name.replace("7", "3")] = files[name]
        server.add("owner/nano.chat", files | {"code.py": b"import os", "sub/config.json": b"{}"})
        yield server


def paths(server):
    """The files that were asked for."""
    return {Path(asked.path).name for asked in server.asked if asked.host == "store"}


def test_a_model_of_transformers_is_fetched_and_read(hub, tmp_path):
    folder, label = fetch_model(tmp_path, "owner/hugging", "main")
    assert label == f"owner/hugging@{COMMIT[:12]}"
    assert folder == tmp_path / "data" / "models" / "owner--hugging" / COMMIT
    assert import_run.read_model(folder, None, None).format == "transformers"
    assert "logits.npz" not in paths(hub)


def test_a_checkpoint_of_nanochat_is_fetched_without_the_others(hub, tmp_path):
    folder, _ = fetch_model(tmp_path, "owner/nano.chat", "main")
    assert paths(hub) == {"model_000007.pt", "meta_000007.json", "tokenizer.pkl"}
    assert import_run.read_model(folder, None, None).model.n_layer == 2
    fetch_model(tmp_path, "owner/nano.chat", "main", step=3)
    assert "model_000003.pt" in paths(hub)


def test_what_is_here_is_not_asked_for_again_and_offline_is_enough(hub, tmp_path):
    with pytest.raises(ArtifactError, match="jaxchat import owner/hugging"):
        fetch_model(tmp_path, "owner/hugging", "main", offline=True)
    first = fetch_model(tmp_path, "owner/hugging", "main")
    before = len(hub.asked)
    assert fetch_model(tmp_path, "owner/hugging", "main", offline=True) == first
    assert len(hub.asked) == before
    (first[0] / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json .*not here.*jaxchat import"):
        fetch_model(tmp_path, "owner/hugging", "main", offline=True)


def test_what_breaks_off_resumes_and_wrong_bytes_are_noticed(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxchat.data.download.web.RetryPolicy.wait", 0.01)
    hub.fail("model-00001-of-00003.safetensors", Fault(cut=20_000))
    hub.fail("tokenizer.json", Fault(wrong=True))
    folder, _ = fetch_model(tmp_path, "owner/hugging", "main")
    asked = hub.of("model-00001-of-00003.safetensors")
    assert [one.start for one in asked] == [0, 20_000]
    import_run.read_model(folder, None, None)


def test_what_is_not_there_or_private_is_one_sentence(hub, tmp_path):
    with pytest.raises(WebError, match="is not there"):
        fetch_model(tmp_path, "owner/none", "main")
    hub.token = "secret"
    with pytest.raises(WebError, match="set HF_TOKEN"):
        fetch_model(tmp_path, "owner/nano.chat", "main")


def test_a_repository_without_a_model_is_one_sentence(hub, tmp_path):
    hub.add("owner/empty", {"README.md": b"hello"})
    with pytest.raises(ArtifactError, match="has no file like"):
        fetch_model(tmp_path, "owner/empty", "main")
