"""The loss curve: its rows, both kinds of products, and the table, on a model of a few steps."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/loss_curve.py, made small."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    module = importlib.import_module("loss_curve")
    small = {"DEPTH": 2, "LENGTH": 32, "VOCAB": 300, "BATCH_ROWS": 2, "HELD_OUT_ROWS": 4}
    for name, value in {**small, "LOADER_BUFFER": 10}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.usefixtures("optax_promotion")
def test_each_kind_of_products_has_a_curve_and_a_column(
    curve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = "the quick brown fox jumps over the lazy dog and comes home late".split()
    for shard in range(2):
        texts = [" ".join(words[i % 7 :] * (1 + i % 3)) for i in range(shard, shard + 60)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"shard_{shard}.parquet")
    out = tmp_path / "out"
    command = ["x", "--text", str(tmp_path), "--out", str(out), "--steps", "2", "--eval-every", "2"]
    for products in ("plain", "bfloat16"):
        monkeypatch.setattr(sys, "argv", [*command, "--products", products])
        curve.main()
    plain, rounded = (
        json.loads((out / f"{name}.json").read_text()) for name in ("ours", "ours_bfloat16")
    )
    assert plain["loss"][0] == pytest.approx(rounded["loss"][0], rel=1e-3)
    assert plain["loss"] != rounded["loss"]
    assert list(plain["bpb"]) == ["0", "2"]
    table = capsys.readouterr().out.rpartition("step  ")[2]
    assert "ours bfloat16 loss" in table
    assert f"{rounded['bpb']['2']:.4f}" in table
