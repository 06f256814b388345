"""Ceilings and predicted times of devices, and what is said where wheels are missing."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from jaxchat.cli import main
from jaxchat.config import loading
from jaxchat.config.machine import PEAKS, bf16_peak
from jaxchat.config.schema import ComputeConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.inference.engine import Engine
from jaxchat.model.backend import BACKENDS, Compute
from jaxchat.model.capabilities import assumed_compute
from jaxchat.train.compiled import program
from jaxchat.train.compiled.counts import ATTENTION, ELEMENTWISE, PRODUCT, Counts
from jaxchat.train.compiled.engine import STEPS
from jaxchat.train.compiled.roofline import LAUNCH, bound, roofline, small_kernels
from jaxchat.train.compiled.targets import DATA_SHEET, MEASURED, TARGETS

H100 = TARGETS["h100"]


def test_a_gpu_is_described_with_its_own_numbers():
    text = TARGETS["a100"].text()
    assert "major: 8 minor: 0" in text
    assert "core_count: 108" in text
    assert "fpus_per_core: 64" in text
    assert 'device_description_str: "NVIDIA A100-SXM4-80GB"' in text
    assert "$" not in text
    planned = int(re.search(r"device_memory_size: (\d+)", text)[1])
    assert planned * 0.8 == pytest.approx(TARGETS["a100"].usable), "XLA plans for what training has"


@pytest.mark.parametrize("kind", ["h100", "h200", "a100", "b200"])
def test_peaks_are_those_that_training_reports_mfu_of(kind):
    assert PEAKS
    assert bf16_peak(TARGETS[kind].name) == TARGETS[kind].peak


def test_only_the_h100_was_measured():
    assert [kind for kind, one in TARGETS.items() if one.source == MEASURED] == ["h100"]
    assert TARGETS["rtx4090"].source == DATA_SHEET


def counts_of(**numbers: int) -> Counts:
    fields = (field.name for field in dataclasses.fields(Counts))
    empty = dict.fromkeys(fields, 0) | {"parts": {}, "collectives": ()}
    return Counts(**{**empty, **numbers})


def test_the_measured_step_takes_the_time_that_it_took():
    """d20 modern, 2 x 16 rows, on an H100: products 256.8 ms, attention 47.2, others 146.6."""
    step = counts_of(
        product_flops=int(183.7e12), attention_flops=int(13.92e12),
        attention_bytes=int(40.4e9), fine=int(424.1e9),
    )  # fmt: skip
    time = roofline(step, H100)
    assert time.products == pytest.approx(0.2568, rel=0.01)
    assert time.attention == pytest.approx(0.0472, rel=0.01)
    assert time.elementwise == pytest.approx(0.1466, rel=0.01)
    assert time.mfu(0.453 * 0.422 * 989e12, H100) == pytest.approx(0.422, rel=0.01)


def test_fp8_products_and_the_tanh_pass_count_in_the_time():
    wide = counts_of(product_flops=10**14)
    narrow = counts_of(product_flops=10**14, fp8_flops=10**14)
    assert roofline(narrow, H100).seconds < roofline(wide, H100).seconds
    passed = roofline(counts_of(tanh=291 * 10**9), H100)
    assert passed.elementwise == pytest.approx(0.1, rel=1e-3)


class SmallKernel(NamedTuple):
    """What `small_kernels` reads of a kernel."""

    kind: str
    flops: int
    fine: int
    times: int


@pytest.mark.parametrize(
    ("rows", "measured", "off"), [("1", 2.07, 0), ("8", 1.65, 14), ("64", 2.42, 1)]
)
def test_decoding_is_predicted_by_the_least_time_of_a_kernel(rows, measured, off):
    """d20 modern on an H100, counted in its programs for one; of one row LAUNCH is fixed."""
    recorded = json.loads(Path(__file__).with_name("decode_d20.json").read_text(encoding="utf-8"))
    found = [SmallKernel(*one) for one in recorded[rows]]
    time = small_kernels(found, H100, STEPS)
    assert time.seconds * 1e3 == pytest.approx(measured * (1 + off / 100), rel=0.01)
    assert sum(one.times for one in found) / STEPS == pytest.approx(400, rel=0.06)


def test_a_large_kernel_takes_what_bounds_it():
    product = SmallKernel(PRODUCT, int(716e9), 2_910, 1)
    moved = SmallKernel(ELEMENTWISE, 0, int(2.91e9), 2)
    time = small_kernels([product, moved], H100)
    assert (time.products, time.elementwise) == (pytest.approx(1e-3), pytest.approx(2e-3))
    assert small_kernels([SmallKernel(ATTENTION, 1, 1, 3)], H100).attention == 3 * LAUNCH


def test_a_dispatch_has_the_engines_steps():
    assert inspect.signature(Engine.__init__).parameters["steps_per_dispatch"].default == STEPS


def test_what_data_sheets_promise_is_a_bound_below_the_predicted_time():
    step = counts_of(
        product_flops=int(989e12), attention_flops=int(98.9e12),
        attention_bytes=int(3.35232e12), fine=int(3.35232e12),
    )  # fmt: skip
    assert bound(step, H100) == pytest.approx(1 + 0.1 + 1 + 1)
    assert bound(step, H100) < roofline(step, H100).seconds
    assert bound(counts_of(product_flops=10**14, fp8_flops=10**14), H100) == 1e14 / 1979e12


@pytest.mark.parametrize("kind", ["h100", "v5e-8"])
def test_missing_wheels_are_one_sentence_with_what_to_install(kind, monkeypatch):
    def absent(*_: object, **__: object) -> None:
        raise NotImplementedError("topology not implemented for it")

    monkeypatch.setattr(program.topologies, "get_topology_desc", absent)
    with pytest.raises(ArtifactError, match=r'\(topology not .*\); run: pip install "jax.*\[.*\]"'):
        program.find_devices(TARGETS[kind], 8)


def test_a_library_that_another_process_has_is_not_called_missing(monkeypatch):
    def locked(*_: object, **__: object) -> None:
        raise RuntimeError("ABORTED: Internal error when accessing libtpu multi-process lockfile.")

    monkeypatch.setattr(program.topologies, "get_topology_desc", locked)
    with pytest.raises(ArtifactError, match="another process has loaded libtpu"):
        program.find_devices(TARGETS["v5e-8"], 8)


@pytest.mark.parametrize(("said", "wheel"), program.WHEELS)
def test_a_part_of_the_compiler_that_is_missing_is_named(said, wheel):
    class Step:
        def lower(self) -> None:
            raise RuntimeError(f"INTERNAL: {said}")

    with pytest.raises(ArtifactError, match=f"needs the wheel {wheel}"):
        program.compile_program(Step())


def test_other_errors_of_the_compiler_stay_as_they_are():
    class Step:
        def lower(self) -> None:
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        program.compile_program(Step())


def test_what_is_assumed_of_a_device_is_what_its_backend_has():
    config = ComputeConfig(compiler_options=("xla_gpu_autotune_level=0",))
    compute = assumed_compute(config, BACKENDS["gpu"], 8)
    assert (compute.attention, compute.fused, compute.matmul) == ("cudnn", True, "default")
    assert dict(compute.options) == {**dict(BACKENDS["gpu"].options), "xla_gpu_autotune_level": 0}
    assert assumed_compute(ComputeConfig(fp8=True), BACKENDS["gpu"]).matmul == "fp8"


def test_doctor_refuses_a_kind_that_it_does_not_know(capsys):
    with pytest.raises(SystemExit) as left:
        main.main(["doctor", "--compile", "v100"])
    assert left.value.code == 2
    assert "v100" in capsys.readouterr().err


@pytest.mark.usefixtures("optax_promotion")
def test_an_option_of_the_users_reaches_the_compiler(monkeypatch):
    """On the devices here, whose compiler refuses what it does not know."""
    monkeypatch.setattr(program, "find_devices", lambda target, count: jax.devices()[:count])
    config = loading.load(loading.find_tier("cpu"), ["mesh.host_devices=0", "hardware.devices=1"])
    compute = Compute(options=(("xla_no_such_option", True),))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        program.compile_step(config, H100, compute=compute)


def test_an_option_that_xla_refuses_is_one_sentence_before_anything_is_compiled():
    config = ComputeConfig(compiler_options=("xla_no_such_option=1",))
    with pytest.raises(ConfigError, match=r"compute\.compiler_options: .*xla_no_such_option"):
        assumed_compute(config, BACKENDS["gpu"])
