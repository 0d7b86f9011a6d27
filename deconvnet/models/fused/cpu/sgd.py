"""SGD with momentum and weight decay, which reads and writes each parameter once a step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray, types
from torch import Tensor

from deconvnet.models.fused.cpu.parallel import compiled, pointer, run, take_chunk

CHUNK = 2**17
"""Largest number of elements in a chunk. Each chunk belongs to one parameter."""


class FusedSGD(torch.optim.SGD):
    """torch's SGD with the same state, for float32 parameters on the CPU.

    Weight decay and momentum are torch's; dampening, Nesterov's momentum and maximising are not supported.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters by their gradients. Parameters without a gradient stay as they are.

        Args:
            closure: not supported; it is there because the base class has it.

        Raises:
            ValueError: if there is a closure.
        """
        if closure is not None:
            raise ValueError("a closure is not supported")
        chunks: list[np.ndarray] = []
        rates: list[tuple[float, float, float]] = []
        kept: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"] = _laid_out_as(parameter, state["momentum_buffer"])
                kept.append(gradient := _laid_out_as(parameter, gradient))
                starts = np.arange(0, parameter.numel(), CHUNK)
                chunk = np.empty((len(starts), 5), np.int64)
                chunk[:, :3] = 4 * starts[:, None] + [parameter.data_ptr(), gradient.data_ptr(), momentum.data_ptr()]
                chunk[:, 3], chunk[:, 4] = np.minimum(CHUNK, parameter.numel() - starts), len(rates)
                chunks.append(chunk)
                rates.append((group["lr"], group["weight_decay"], group["momentum"]))
        if chunks:
            table = np.concatenate(chunks)
            run(_kernel, len(table), table, np.array(rates, np.float32))
        return None


def _laid_out_as(parameter: Tensor, values: Tensor) -> Tensor:
    """Return a tensor with the values and the memory layout of a parameter's.

    Args:
        parameter: the parameter.
        values: tensor of the same shape. It is returned itself if it has the same layout.
    """
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter).copy_(values)


@compiled(fastmath={"contract", "nsz"})
def _kernel(block: Any) -> None:
    """Change parameters and momenta.

    Arguments: a table of chunks, int64 (chunks, 5): addresses of parameter, gradient and momentum, their number, and the row of
    the second table, float32 (parameters, 3): learning rate, weight decay, momentum.
    """
    a = carray(block, 4)
    table = carray(pointer(a[2], types.int64), a[1] * 5)
    while True:
        chunk = take_chunk(block)
        if chunk >= a[1]:
            return
        row = table[chunk * 5 :][:5]
        count = row[3]
        parameter, velocity = carray(pointer(row[0], types.float32), count), carray(pointer(row[2], types.float32), count)
        gradient = carray(pointer(row[1], types.float32), count)
        rates = carray(pointer(a[3] + 12 * row[4], types.float32), 3)
        lr, decay, momentum = rates[0], rates[1], rates[2]
        for i in range(count):
            value = parameter[i]
            step = velocity[i] * momentum + (gradient[i] + value * decay)
            velocity[i] = step
            parameter[i] = value - step * lr
