"""The devices that programs are compiled for without one: what XLA must know, and their ceilings.

A GPU is described to XLA by a text that its kind's numbers fill, a TPU by a name of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from jaxchat.config.memory import MARGIN
from jaxchat.config.schema import MODELS

USERS = (*MODELS, "eval", "chat")  # the stages, and the command, whose programs are compiled

# Without a device XLA plans for this share of its memory, and computes products again where a step
# takes more. It is given a card so large that the share is what training takes.
XLA_SHARE = 0.8
MEASURED, DATA_SHEET = "measured", "data sheet"
# Shares of its data sheet that an H100 reached (docs/log.md, 2026-11-27); what others reach was not
# measured. Attention takes time for the scores that are seen and for the bytes
# that go in and out: with windows of 512 and without, 47.2 and 62.7 ms.
PRODUCT_SHARE, FP8_SHARE, MEMORY_SHARE = 716 / 989, 997 / 1979, 2.91 / 3.35232
SCORES_SHARE, ATTENTION_MEMORY_SHARE = 655 / 989, 1.557 / 3.35232

# xla/backends/gpu/target_config/specs has these of XLA's own; numbers as CUDA reports them.
GPU_TEXT = Template("""gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 fpus_per_core: $units
  shared_memory_per_block: 49152 shared_memory_per_core: $shared_core
  shared_memory_per_block_optin: $shared_block threads_per_core_limit: $threads
  core_count: $cores block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: $bandwidth l2_cache_size: $cache clock_rate_ghz: $clock
  device_memory_size: $memory
  cuda_compute_capability { major: $major minor: $minor }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 19 }
runtime_version { major: 13 minor: 0 }
device_description_str: "$name"
""")


@dataclass(frozen=True)
class Target:
    """One kind of device. Rates are a second's and those that programs reach, not peaks."""

    name: str  # as JAX names the device
    memory: int  # bytes of the whole device
    bandwidth: float  # of the data sheet
    peak: float  # FLOP/s of dense bf16 products, of the data sheet: of MFU
    fp8_peak: float = 0.0  # 0: it has no products of fp8
    topology: str = ""  # of a TPU; "": a GPU
    source: str = DATA_SHEET  # of the rates
    capability: tuple[int, int] = (9, 0)
    cores: int = 132
    units: int = 128  # of float32, a core's
    cache: int = 50 << 20
    clock: float = 1.98  # GHz
    shared: tuple[int, int] = (233_472, 232_448)  # bytes of a core, and of a block at most
    threads: int = 2_048  # of a core

    @property
    def platform(self) -> str:
        """ "gpu" or "tpu"."""
        return "tpu" if self.topology else "gpu"

    @property
    def usable(self) -> float:
        """Bytes that training takes of the memory."""
        return self.memory * (1 - MARGIN)

    @property
    def products(self) -> float:
        """FLOP/s of bf16 products."""
        return PRODUCT_SHARE * self.peak

    @property
    def fp8(self) -> float:
        """FLOP/s of fp8 products, with what scales and rounds."""
        return FP8_SHARE * self.fp8_peak

    @property
    def elementwise(self) -> float:
        """Bytes a second of elementwise kernels, by the fine count."""
        return MEMORY_SHARE * self.bandwidth

    @property
    def scores(self) -> float:
        """FLOP/s of attention."""
        return SCORES_SHARE * self.peak

    @property
    def attended(self) -> float:
        """Bytes a second of attention's operands and results."""
        return ATTENTION_MEMORY_SHARE * self.bandwidth

    def text(self) -> str:
        """What XLA's GPU compiler is given."""
        return GPU_TEXT.substitute(
            name=self.name, memory=int(self.usable / XLA_SHARE), bandwidth=int(self.bandwidth),
            cores=self.cores, units=self.units, threads=self.threads,
            cache=self.cache, clock=self.clock,
            major=self.capability[0], minor=self.capability[1],
            shared_core=self.shared[0], shared_block=self.shared[1],
        )  # fmt: skip


TARGETS = {
    "h100": Target(
        "NVIDIA H100 80GB HBM3", 84_942_979_072, 3.35232e12, 989e12, 1979e12, source=MEASURED
    ),
    "h200": Target("NVIDIA H200", 151_397_597_184, 4.8e12, 989e12, 1979e12),
    "a100": Target(
        "NVIDIA A100-SXM4-80GB", 85_100_068_864, 2.039e12, 312e12, capability=(8, 0), cores=108,
        units=64, cache=40 << 20, clock=1.41, shared=(167_936, 166_912),
    ),
    "b200": Target(
        "NVIDIA B200", 191_514_411_008, 7.67232e12, 2250e12, 4500e12, capability=(10, 0), cores=148,
        cache=132_644_864, clock=1.965,
    ),
    "rtx4090": Target(
        "NVIDIA GeForce RTX 4090", 25_250_000_000, 1.008e12, 165e12, 330e12, capability=(8, 9),
        cores=128, cache=72 << 20, clock=2.52, shared=(102_400, 101_376), threads=1_536,
    ),
    "v5e-8": Target("TPU v5 lite", 17_179_869_184, 0.819e12, 197e12, topology="v5e:2x4"),
    "v6e-8": Target("TPU v6 lite", 34_359_738_368, 1.64e12, 918e12, topology="v6e:2x4"),
}  # fmt: skip
