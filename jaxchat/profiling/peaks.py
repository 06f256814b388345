"""What a device can do at most, for utilisation (MFU)."""

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
