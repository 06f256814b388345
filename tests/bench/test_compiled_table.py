"""The tables of compiled steps are made of what the doctor writes."""

import json

import compiled_table
import pytest

STEP = {
    "tier": "100", "kind": "h100", "ceilings": "measured", "fits": True, "mfu": 0.5741,
    "memory_bytes": 67.2e9, "predicted_bytes": {"peak": 67.65e9}, "compile_seconds": 41.6,
    "seconds": {"step": 0.4034, "products": 0.2646, "attention": 0.0627, "elementwise": 0.0762},
    "bound_seconds": 0.31,
    "counts": {
        "products": 429, "product_flops": 189.4e12, "attention_calls": 40,
        "attention_flops": 24.06e12, "kernels": 1_693, "fine": 221.7e9, "tanh": 0, "recomputed": 2,
        "collectives": [
            {"times": 1, "size": 2e9, "kernels": 3}, {"times": 2, "size": 1e8, "kernels": 0},
        ],
    },
}  # fmt: skip
A100 = {**STEP, "kind": "a100", "ceilings": "data sheet", "fits": False}


@pytest.fixture
def lines(tmp_path, capsys):
    files = []
    for name, one in (("100.h100", STEP), ("100.a100", A100)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(one))
    assert compiled_table.main([str(file) for file in files]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_step_on_a_measured_card_is_shown_in_full(lines):
    assert lines[2] == (
        "| 100 | 67.2 (67.7) GB | 429, 189.4 TFLOP | 40, 24.1 TFLOP | 1,693, 221.7 GB | "
        "3, 2.2 GB; 1 overlap | 403 ms: 265 + 63 + 76 | 57.4% | 2 | 42 s |"
    )


def test_other_cards_get_what_fits_and_bounds(lines):
    assert lines[-1] == (
        "| 100 | NVIDIA A100-SXM4-80GB | 67.2 (67.7) GB | NO | 221.7 GB | 310 ms | 403 ms, 57% | 2 "
        "|"
    )
    assert all(row.count("|") == lines[4].count("|") for row in lines[4:])
