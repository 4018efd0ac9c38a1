"""The device that the chapters' exercises run on, and how long a call takes there."""

import time

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def milliseconds(call, repeat: int = 10) -> float:
    """Median time of `call`, the device's work included."""
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times[2:])[repeat // 2]
