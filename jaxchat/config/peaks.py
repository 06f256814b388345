"""What a device can do at most, for utilisation of its arithmetic (MFU) and its memory (MBU)."""

from __future__ import annotations

# Words of a device's name, FLOP/s of dense bf16 matrix products and bytes a second of the memory,
# from the vendors' data sheets (without sparsity). The first whose words are in the name counts.
PEAKS = (
    (("A100", "40GB"), 312e12, 1.555e12),
    (("A100",), 312e12, 2.039e12),
    (("GH200",), 989e12, 4.0e12),
    (("H100", "PCIe"), 756e12, 2.0e12),
    (("H100",), 989e12, 3.35e12),
    (("H200",), 989e12, 4.8e12),
    (("B200",), 2250e12, 8.0e12),
)


def _peaks(device_kind: str) -> tuple[float | None, float | None]:
    words = set(device_kind.replace("-", " ").split())
    found = ((flops, memory) for names, flops, memory in PEAKS if words.issuperset(names))
    return next(found, (None, None))


def bf16_peak(device_kind: str) -> float | None:
    """FLOP/s of one device as jax names it, such as `NVIDIA H100 80GB HBM3`; None if unknown."""
    return _peaks(device_kind)[0]


def memory_bandwidth(device_kind: str) -> float | None:
    """Bytes a second of one device as jax names it; None if unknown."""
    return _peaks(device_kind)[1]
