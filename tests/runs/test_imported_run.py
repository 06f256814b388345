"""Fine-tuning a model from elsewhere by run_speedrun.py, on conversations of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest

import run_speedrun
from jaxchat.config import loading
from jaxchat.runs import import_run, run_dir, runner
from jaxchat.runs.opening import load_model

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def home(tmp_path):
    """A home with nanochat's checkpoint, in the place of midtraining."""
    folder = GOLDEN / "nanochat_checkpoint_modern" / "chatsft_checkpoints" / "d2"
    import_run.make_run(tmp_path, "nano", import_run.read_model(folder, None, None), "mid", "there")
    return tmp_path


def test_the_tiers_settings_with_the_imported_models_architecture(home):
    tiers = loading.tiers()
    config = run_dir.configure(home, tiers["cpu"], ["run.name=nano"])
    there = run_dir.read_config(home / "runs" / "nano")
    assert (config.model, config.imported) == (there.model, there.imported)
    assert (config.preset, config.depth) == ("modern", 2)
    assert config.sft.batch_tokens == 2_048  # as the tier has it
    assert run_dir.configure(home, tiers["cpu"], []).imported.stage == ""


@pytest.mark.slow
def test_sft_continues_from_the_imported_weights(home, tmp_path, capsys, optax_promotion):
    talk = [("user", "who sat on the mat"), ("assistant", "the cat sat on the mat")]
    line = json.dumps({"messages": [{"role": role, "content": text} for role, text in talk]})
    own = tmp_path / "talks.jsonl"
    own.write_text(f"{line}\n" * 4_000)
    settings = [
        "run.name=nano", "data.max_chars=300_000", f'sft.epochs."{own}"=1', "sft.mixture={}",
        "sft.conversations=0", "sft.batch_tokens=1152", "sft.micro_rows=1", "sft.eval_rows=8",
        "optim.warmup_steps=0", "sft.lr_scale=1.0",
    ]  # fmt: skip
    stages = "data,tokenizer,rows,base,mid,sft"
    command = ["--tier", "cpu", "--home", str(home), "--offline", "--stages", stages]
    for setting in settings:
        command += ["--set", setting]
    assert run_speedrun.main(command) == 0
    printed = capsys.readouterr()
    for line in ("tokenizer: imported", "base model: left out", "midtraining: imported"):
        assert line in printed.out
    run = home / "runs" / "nano"
    done = runner.read_done(run, "sft")["results"]
    assert done["loss"] < 1.0
    config = run_dir.read_config(run)
    before, after = (load_model(run, stage, config.model) for stage in ("mid", "sft"))
    assert not np.array_equal(before["lm_head"]["kernel"], after["lm_head"]["kernel"])
    assert not list((run / "rows").glob("mid_*"))
    assert run_speedrun.main(command) == 0  # everything is there
    assert "fine-tuning: complete, skipped" in capsys.readouterr().out
