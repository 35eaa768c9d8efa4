"""What is known of devices without asking them. No torch."""

from __future__ import annotations

GPU_PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bf16 peak in FLOP/s, by a part of the name the driver gives (vendor's data sheets)."""


def peak_flops(name: str) -> float | None:
    """Dense bf16 peak of a device by its name, None where it is not known."""
    return next((peak for kind, peak in GPU_PEAK_FLOPS.items() if kind in name), None)
