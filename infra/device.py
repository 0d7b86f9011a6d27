"""Properties and modes of the devices on which PyTorch computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray

from infra.errors import UserError


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


def fast_int8(device: torch.device | str) -> bool:
    """Return whether a device computes much faster in 8-bit integers than in float32.

    This is true of CPUs with the instruction sets AVX-512 VNNI (Intel from Cascade Lake, AMD from Zen 4 on), AVX-VNNI or AMX.
    Without them, oneDNN is not only slower: its sums of products of 8-bit integers can also overflow.

    Args:
        device: the device, for example "cpu".
    """
    capabilities = torch.cpu.get_capabilities()
    return torch.device(device).type == "cpu" and any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def check_gpu(gpu: bool) -> None:
    """Check that this process can use a GPU, if it is to use one.

    Args:
        gpu: the setting `compute.gpu`.

    Raises:
        UserError: if it can't.
    """
    if gpu and not torch.cuda.is_available():
        raise UserError("compute.gpu is true, and this machine has no GPU that torch can use: set it to false")


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array.

    From a GPU it is copied to pinned memory, which torch keeps for the next time. This takes a thirtieth of the time of a copy to
    new memory.

    Args:
        tensor: the tensor, on any device.

    Returns:
        The array. If the tensor is on a CPU, both share their memory.
    """
    if tensor.is_cuda:
        tensor = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)
    return tensor.numpy()


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Turn on cuDNN's benchmark mode for the duration of a `with` statement.

    cuDNN then times all algorithms for each new input shape, and keeps the fastest. Use it only where shapes repeat, as in
    training.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
