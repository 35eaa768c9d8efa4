"""What is known of GPUs by the names their drivers give."""

import pytest

from models.devices import GPUS, gpu_kind, mfu, peak_flops

NAMES = {
    "NVIDIA H200": "H200",
    "NVIDIA H200 NVL": "H200 NVL",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H20": "H20",
    "NVIDIA H20-3e": "H20",
    "NVIDIA GH200 480GB": "GH200",
    "NVIDIA B200": "B200",
    "NVIDIA GB200": "GB200",
    "NVIDIA B300 SXM6 AC": "B300",
    "NVIDIA GB300": "GB300",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100 80GB PCIe": "A100",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX PRO 6000 Blackwell Server",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000 Blackwell Max-Q",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI300X VF": "MI300X",
    "Tesla T4": None,
    "NVIDIA L4": None,
    "NVIDIA RTX 6000 Ada Generation": None,
    "NVIDIA GeForce RTX 5090 Laptop GPU": None,
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_gpu_is_known_by_its_drivers_name(name, kind):
    assert gpu_kind(name) == kind
    assert peak_flops(name) == (GPUS[kind].peak_flops if kind else None)


@pytest.mark.parametrize("kind", GPUS)
def test_a_kind_is_found_by_its_own_name_as_a_cluster_writes_it(kind):
    assert gpu_kind(kind) == kind
    assert kind in NAMES.values()


@pytest.mark.parametrize("kind", GPUS)
def test_what_a_data_sheet_says_is_in_the_right_units(kind):
    """Data sheets say TFLOPS, GB/s or TB/s, and GB: a slip is a factor of a thousand."""
    gpu = GPUS[kind]
    assert 1e14 <= gpu.peak_flops < 1e16
    assert gpu.bandwidth
    assert 5e11 < gpu.bandwidth < 1e13
    assert gpu.memory_bytes
    assert 2e10 < gpu.memory_bytes < 4e11
    assert gpu.link
    assert 3e10 < gpu.link < 1e12
    # A multiply-add with every element read once has needed tens to hundreds of FLOPs a byte.
    assert 30 < gpu.peak_flops / gpu.bandwidth < 500


def test_mfu_of_a_gpu_at_its_peak_is_one():
    assert mfu("NVIDIA H100 80GB HBM3", 8, 8 * 989e12 * 3, 3.0) == 1.0
    assert mfu("Tesla T4", 1, 1.0, 1.0) is None
