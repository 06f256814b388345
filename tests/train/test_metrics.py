"""metrics.jsonl: every step once, whatever was killed when."""

from pathlib import Path

from jaxchat.train.metrics import MetricsLog, read_metrics


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "deep" / "metrics.jsonl")
    log.write({"step": 0, "loss": 2.5})
    log.write({"step": 0, "bits_per_byte": 1.25})
    log.write({"step": 1, "loss": 2.0})
    assert read_metrics(log.path) == [
        {"step": 0, "loss": 2.5},
        {"step": 0, "bits_per_byte": 1.25},
        {"step": 1, "loss": 2.0},
    ]


def test_nothing_logged_is_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(3):
        log.write({"step": step})
        assert steps(log.path) == list(range(step + 1))


def test_a_resume_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(10):
        log.write({"step": step})
    MetricsLog(path, from_step=7).write({"step": 7})
    assert steps(path) == list(range(8))
    MetricsLog(path)
    assert steps(path) == []


def test_a_last_line_cut_by_a_crash_is_left_out_and_not_grown_onto(tmp_path: Path) -> None:
    whole = '{"step": 0, "loss": 2.5}\n{"step": 1, "loss": 2.25}\n'
    for cut in range(26, len(whole) + 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_text(whole[:cut])
        # without its line end, the second record is whole all the same
        expected = [0, 1] if cut >= len(whole) - 1 else [0]
        assert steps(path) == expected, f"cut after {whole[:cut]!r}"
        MetricsLog(path, from_step=2).write({"step": 2})
        assert steps(path) == [*expected, 2], f"cut after {whole[:cut]!r}"
