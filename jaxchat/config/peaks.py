"""What a device can do at most, for utilisation of its arithmetic (MFU) and its memory (MBU)."""

from __future__ import annotations

# FLOP/s of dense bf16 matrix products, from the vendors' data sheets (without sparsity).
BF16_PEAK = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}


def bf16_peak(device_kind: str) -> float | None:
    """FLOP/s of one device as jax names it, such as `NVIDIA H100 80GB HBM3`; None if unknown.

    An H100 PCIe is slower than its name says here (756e12).
    """
    if "H100" in device_kind and "PCIe" in device_kind:
        return 756e12
    words = device_kind.replace("-", " ").split()
    return next((peak for name, peak in BF16_PEAK.items() if name in words), None)


# Bytes a second of the memory, from the same data sheets; the first whose words are in the name.
MEMORY_BANDWIDTH = (
    (("A100", "40GB"), 1.555e12),
    (("A100",), 2.039e12),
    (("GH200",), 4.0e12),
    (("H100", "PCIe"), 2.0e12),
    (("H100",), 3.35e12),
    (("H200",), 4.8e12),
    (("B200",), 8.0e12),
)


def memory_bandwidth(device_kind: str) -> float | None:
    """Bytes a second of one device as jax names it; None if unknown."""
    words = device_kind.replace("-", " ").split()
    return next(
        (peak for names, peak in MEMORY_BANDWIDTH if all(name in words for name in names)), None
    )
