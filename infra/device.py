"""Properties of the devices on which PyTorch computes."""

import torch


def fast_bf16(device: torch.device | str) -> bool:
    """Return whether a device computes much faster in bfloat16 than in float32.

    This is true of NVIDIA GPUs from the Ampere generation on, and of CPUs with the instruction set AVX-512 BF16.

    Args:
        device: the device, for example "cuda" or "cpu".
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
