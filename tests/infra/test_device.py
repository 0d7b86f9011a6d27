"""What is asked of a GPU, by stand-ins for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from infra.device import fast_bf16, to_numpy


def test_a_gpu_that_only_emulates_bfloat16_is_not_fast_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not fast_bf16("cuda") and not fast_bf16("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert fast_bf16("cuda")


def test_an_array_of_a_tensor_on_a_gpu_is_complete_when_it_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to pinned memory that nobody waits for would still be running."""

    class Pinned:
        def copy_(self, source: object, non_blocking: bool = False) -> torch.Tensor:
            assert source is on_gpu
            return torch.full((2,), 0.0 if non_blocking else 7.0)

    on_gpu = SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(torch, "empty_like", lambda *_, device, pin_memory: Pinned())
    np.testing.assert_array_equal(to_numpy(on_gpu), [7, 7])
