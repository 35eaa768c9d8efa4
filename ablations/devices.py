"""What is known of devices without asking them. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    peak_flops: float
    """Dense bf16 peak in FLOP/s (vendor's data sheets)."""
    mfu: float = 0.40
    """Share of the peak that a plan assumes. Published for dense models of 0.5B to 8B in bf16: 33 %
    to 48 % on H100 (torchtitan, nanochat, PrimeIntellect). Not yet measured with this project."""


GPUS = {
    # Olmo Hybrid 7B on 512 B200: 10.96k tokens a second each, 21 % of the peak.
    "B200": Gpu(2250e12, 0.25),
    "H200": Gpu(989e12),
    "H100 PCIe": Gpu(756e12),
    "H100": Gpu(989e12),
    "A100": Gpu(312e12),
    "L40S": Gpu(362e12),
    "RTX 4090": Gpu(165e12),
}
"""By a part of the name the driver gives; the first that fits."""


def gpu_kind(name: str) -> str | None:
    """The kind in GPUS of a device by its name, None where it is not known."""
    return next((kind for kind in GPUS if kind in name), None)


def peak_flops(name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of a device by its name, None where it is not known."""
    kind = gpu_kind(name)
    return GPUS[kind].peak_flops if kind else None


def mfu(name: str, devices: int, flops: float, seconds: float) -> float | None:
    """Model FLOPs utilization, to four digits (Chowdhery et al. 2022, appendix B): training FLOPs
    done in so many seconds, as `models.cost` counts them, over what devices of that name could do.

    None where their peak is not known.
    """
    peak = peak_flops(name)
    return float(f"{flops / (seconds * devices * peak):.4g}") if peak and seconds > 0 else None
