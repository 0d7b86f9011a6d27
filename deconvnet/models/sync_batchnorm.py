"""Batch norm synchronised over several training workers, and recomputation of its statistics after training.

torch's SyncBatchNorm works on GPUs only. `SyncBatchNorm2d` does the same on CPUs, with gloo as communication backend. Both have
the same state_dict keys as BatchNorm2d. Without torch.distributed, or in a process group with one member, everything here
behaves like plain batch norm.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d that normalises over the examples of all workers (training processes) together, on any device.

    The gradients also take all workers' examples into account. Workers may have different numbers of examples, including none.
    All workers must run the same sequence of forward and backward passes, because each pass waits for the others.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel.

        In training mode, the mean and variance of all workers' examples are used and the running statistics are updated. In
        evaluation mode, the running statistics are used.

        Args:
            input: tensor of shape (N, C, H, W). N may differ between workers and may be 0.

        Returns:
            Tensor of the same shape.

        Raises:
            ValueError: if all workers together have fewer than 2 values per channel in training mode.
        """
        self._check_input_dim(input)
        if not self.training or world_size() == 1:
            return super().forward(input)
        mean, var, count = _global_moments(input.detach())
        if count < 2:
            raise ValueError(f"batch norm needs more than 1 value a channel over all workers, got {count}")
        update_running_stats(self, mean, var * count / (count - 1))
        return cast(Tensor, _Normalise.apply(input, self.weight, self.bias, mean, var, count, self.eps))


def update_running_stats(norm: nn.BatchNorm2d, mean: Tensor, unbiased_var: Tensor) -> None:
    """Update the running mean and variance of a batch norm, as BatchNorm2d does in training.

    Args:
        norm: the batch norm, changed in place.
        mean: each channel's mean over the current examples of all workers (training processes), of shape (C,).
        unbiased_var: each channel's unbiased variance over the same examples, of shape (C,).
    """
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(unbiased_var.to(norm.running_var.dtype), momentum)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Compute each channel's mean and variance over all workers (training processes). Every worker must call this.

    Args:
        x: this worker's activations of shape (N, C, H, W). N may be 0.

    Returns:
        The mean and the biased variance of each channel (two tensors of shape (C,), float64 if `x` is, otherwise float32), and
        the number of values in a channel over all workers.
    """
    x = _at_least_float32(x)
    count = x.numel() // x.shape[1]
    # float64, because E[x²] − E[x]² loses precision if the mean is large compared with the standard deviation
    moments = torch.zeros(2, x.shape[1], dtype=torch.float64, device=x.device)
    if count:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)  # 5 times as fast as torch.var_mean
        moments[0], moments[1] = mean, var.double() + mean.double() ** 2
    sums = torch.cat([(moments * count).flatten(), moments.new_tensor([count])])
    dist.all_reduce(sums)
    total = int(sums[-1])
    mean, square = (sums[:-1] / max(total, 1)).view(2, -1)
    return mean.to(x.dtype), (square - mean**2).clamp(min=0).to(x.dtype), total


def _at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float64 as it is, and one of less precision in float32."""
    return x if x.dtype == torch.float64 else x.float()


class _Normalise(torch.autograd.Function):
    """The autograd function that normalises activations by their mean and variance over all workers (training processes).

    The mean and variance depend on the activations, so the gradient passes through them too, across workers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: int, eps: float) -> Tensor:
        """Normalise activations and store what the backward pass needs.

        Args:
            ctx: autograd's context object.
            x: activations of this worker (training process), of shape (N, C, H, W).
            weight: scale of each channel, of shape (C,).
            bias: shift of each channel, of shape (C,).
            mean: mean of each channel over all workers, of shape (C,).
            var: biased variance of each channel over all workers, of shape (C,).
            count: number of values in a channel over all workers.
            eps: small number that is added to the variance before the division by its square root.

        Returns:
            The normalised activations, of the same shape as `x`.
        """
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of `x`, `weight` and `bias` (arguments of `forward`). Every worker must call this.

        Args:
            ctx: autograd's context object, filled by `forward`.
            grads: a single tensor, the gradient of the loss with respect to the output.

        Returns:
            A gradient for each argument of `forward` after `ctx`. It is None for all but `x`, `weight` and `bias`.
        """
        x, weight, mean, var = ctx.saved_tensors
        grad, values = _at_least_float32(grads[0]), _at_least_float32(x)
        inverse = (var + ctx.eps).rsqrt()
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        if x.numel():
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, values, weight, None, None, mean, inverse, True, ctx.eps, [False, True, True]
            )
        # The gradients of weight and bias are this worker's own. DDP averages them over the workers, like all others.
        sums = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(sums)
        mean_grad, mean_grad_normalised = (sums / ctx.count).view(2, -1)
        per_channel = (1, -1, 1, 1)
        # γ/σ · (grad − mean(grad) − x̂ · mean(grad·x̂)), written as grad·a + x·b + c, so that activations are read only once
        a = weight * inverse
        b = -a * mean_grad_normalised * inverse
        c = -a * mean_grad - b * mean
        grad_x = torch.addcmul(c.view(per_channel), values, b.view(per_channel)).addcmul_(grad, a.view(per_channel))
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


def convert_sync(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d in a model by a batch norm that is synchronised over all workers (training processes).

    torch's SyncBatchNorm is used if the model is on a GPU, otherwise `SyncBatchNorm2d`.

    Args:
        model: the model, changed in place. Its parameters and buffers stay the same objects.

    Returns:
        The model. If the model itself is a BatchNorm2d on a GPU, a new module is returned.
    """
    if any(p.is_cuda for p in model.parameters()):
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for layer in model.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SyncBatchNorm2d  # the subclass has no attributes of its own
    return model


def recompute_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the running mean and variance of every trainable batch norm to their average over some batches.

    The running averages of training lag behind the weights. Therefore the released DeconvNet also computes them anew, over 500
    batches of training data, before inference. The weights stay as they are. Every worker (training process) must call this.

    Args:
        model: the model, changed in place. While this function runs, only batch norms are in training mode, so dropout is off.
            All modules' modes are restored at the end.
        batches: input tensors for the model. Each batch has the same weight in the average. If batch norm is synchronised, all
            workers must have the same number of batches.

    Returns:
        The number of batches over all workers. If all batch norms are synchronised, the number of this worker's batches.

    Raises:
        ValueError: if there is no batch.
    """
    every = (m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats)
    norms = [norm for norm in every if norm.weight is None or norm.weight.requires_grad]
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None makes torch compute a cumulative average
        norm.train()
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
                count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return _average_over_workers(norms, count)


def _average_over_workers(norms: list[_BatchNorm], count: int) -> int:
    """Average the running statistics of plain batch norms over all workers, weighted by their numbers of batches.

    The statistics of synchronised batch norms are already equal on all workers and are not changed. Every worker must call
    this.

    Args:
        norms: all batch norms of the model, changed in place.
        count: number of batches from which this worker has computed the statistics.

    Returns:
        The sum of `count` over all workers. If there is nothing to average (one worker, or no plain batch norm), `count`
        itself.

    Raises:
        ValueError: if the returned number would be 0.
    """
    own = [n for n in norms if not isinstance(n, (SyncBatchNorm2d, nn.SyncBatchNorm))]
    if not own or world_size() == 1:
        total = count
    else:
        stats = [cast(Tensor, s) for n in own for s in (n.running_mean, n.running_var)]
        sums = torch.cat([s.double() * count for s in stats] + [stats[0].new_tensor([count], dtype=torch.float64)])
        dist.all_reduce(sums)
        total = int(sums[-1])
        for stat, mean in zip(stats, (sums[:-1] / max(total, 1)).split([len(s) for s in stats]), strict=True):
            stat.copy_(mean)
    if not total:
        raise ValueError("batch-norm statistics need at least one batch")
    return total


def world_size() -> int:
    """Return the number of workers (training processes), or 1 if torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
