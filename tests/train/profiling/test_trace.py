"""Traces are read: of a GPU from planes written here, of this CPU in test_capture."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from jaxchat.errors import ArtifactError
from jaxchat.train.profiling.breakdown import break_down
from jaxchat.train.profiling.classes import COPY, MATMUL, Operations
from jaxchat.train.profiling.hlo import parse
from jaxchat.train.profiling.trace import find_trace, read_events

# As a GPU's plane looks: a line of kernels a stream, no number of the execution, and a line that
# XLA derives from the others, which must not be counted again.
GPU = """
planes {
  name: "/device:GPU:0"
  lines {
    id: 13 name: "Stream #13(Compute)" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 4000000
             stats { metadata_id: 1 str_value: "NAME" } stats { metadata_id: 2 str_value: "M" } }
    events { metadata_id: 2 offset_ps: 6000000 duration_ps: 1000000 }
    events { metadata_id: 1 offset_ps: 10000000 duration_ps: 5000000
             stats { metadata_id: 1 str_value: "NAME" } stats { metadata_id: 2 str_value: "M" } }
  }
  lines {
    id: 99 name: "XLA Ops" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 4000000 }
  }
  event_metadata { key: 1 value { id: 1 name: "nvjet_tst_128x64" } }
  event_metadata { key: 2 value { id: 2 name: "MemcpyD2D" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
"""


def write_trace(folder: Path, text: str) -> Path:
    path = folder / "plugins" / "profile" / "today" / "machine.xplane.pb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace(text))
    return path


def test_kernels_of_a_gpu_are_found_in_the_program(tmp_path: Path) -> None:
    program = jax.jit(lambda x: x @ jnp.sin(x)).lower(jnp.ones((16, 16))).compile()
    module = parse(program.as_text())
    product = next(i.name for i in module.computations[module.entry] if module.flops(i))
    path = write_trace(tmp_path, GPU.replace("NAME", product).replace('"M"', f'"{module.name}"'))

    devices = read_events(path)
    assert list(devices) == ["gpu:0"]
    assert [(e.op, e.start, e.stop) for e in devices["gpu:0"]] == [
        (product, 1000, 5000), ("MemcpyD2D", 7000, 8000), (product, 11000, 16000),
    ]  # fmt: skip
    result = break_down(devices["gpu:0"], Operations(module), module.name)
    # the second time that the product runs is the second step
    assert result.steps == (4000, 5000)
    assert result.by_class() == {
        MATMUL: (9000, 9000, 2 * 2 * 16**3), COPY: (1000, 1000, 0),
    }  # fmt: skip
    assert (result.total, result.within, result.between) == (15000, 0, 5000)


def test_a_plane_without_streams_is_read_by_its_operations(tmp_path: Path) -> None:
    text = GPU.replace("Stream #13(Compute)", "Steps").replace("GPU:0", "TPU:3")
    devices = read_events(write_trace(tmp_path, text))
    assert [(e.op, e.line) for e in devices["tpu:3"]] == [("nvjet_tst_128x64", "XLA Ops")]


def test_the_newest_trace_of_a_folder_is_taken(tmp_path: Path) -> None:
    path = write_trace(tmp_path, GPU)
    assert find_trace(tmp_path) == find_trace(path) == path


def test_a_folder_without_a_trace_says_how_to_record_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no trace .* --profile 10:13"):
        find_trace(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        find_trace(tmp_path / "nowhere")


def test_a_damaged_trace_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError, match=r"x\.xplane\.pb is no trace that jax can read"):
        read_events(path)
