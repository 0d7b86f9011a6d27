"""What a device computes fast."""

import torch


def fast_bf16(device: torch.device | str) -> bool:
    """Whether `device` computes in bfloat16 several times as fast as in float32: GPUs from Ampere on, CPUs with AVX-512 BF16."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
