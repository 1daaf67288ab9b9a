"""What a device can do at best, and how much it holds."""

import os
import time

import torch

# dense bfloat16 TFLOP/s with float32 sums, from the vendors' datasheets, whose figures "with sparsity" are twice these; the
# first whose name is in that of the device. https://www.nvidia.com/en-us/data-center/ a100, h100, h200, l4, l40s; the
# whitepapers of GA102 and AD102; DGX B200's datasheet, 72 PFLOP/s in FP8 with sparsity over eight GPUs; AMD's of MI250X,
# MI300X and MI325X
PEAKS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10": 125.0,
    "MI325X": 1307.4,
    "MI300X": 1307.4,
    "MI250X": 383.0,
}
SIZE, TRIES = 768, 3  # of the product that measures a CPU: long enough for its caches, over in a tenth of a second


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Matrix FLOP/s of a device in a dtype: of a CPU measured, of a GPU its datasheet's, None where that is not known."""
    if device.type == "cpu":
        return measured_flops(dtype)
    return card_flops(torch.cuda.get_device_name(device)) if dtype == torch.bfloat16 else None


def card_flops(name: str) -> float | None:
    return next((1e12 * peak for card, peak in PEAKS.items() if card in name), None)


def measured_flops(dtype: torch.dtype) -> float:
    """The best of a few matrix products by this process, on the threads it has."""
    a = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.mm(a, a)
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(seconds)


def device_memory(device: torch.device) -> int:
    """Bytes that this process may hold: of its GPU, or of this machine's memory, shared with the ranks beside it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
