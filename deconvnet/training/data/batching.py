"""The division of a global batch among the workers, and of a worker's share into micro-batches."""

from infra.errors import UserError


def even_ranges(count: int, parts: int) -> list[range]:
    """Divide the numbers from 0 to count − 1 into consecutive ranges whose lengths differ by at most one.

    Args:
        count: number of integers to divide.
        parts: number of ranges to make.

    Returns:
        The ranges in ascending order. Some are empty if `parts` exceeds `count`.
    """
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def micro_batch_count(batch: int, workers: int, micro_batch: int | None) -> int:
    """Return the number of micro-batches that each worker divides its share of a global batch into.

    A micro-batch contains the examples that a worker computes at once. All workers use the same number, because with synchronised
    batch norm they wait for each other at every micro-batch. No micro-batch is empty. So if the shares differ in size and
    `micro_batch` is 1, some micro-batches have 2 examples. On a single worker, DeconvNet needs at least 2 examples in each
    micro-batch, because of the batch norm after fc6 (`check_batching`).

    Args:
        batch: number of examples in a global batch.
        workers: number of workers.
        micro_batch: largest number of examples in a micro-batch. None: the whole share is one micro-batch.
    """
    return min(-(-batch // (workers * micro_batch)), batch // workers) if micro_batch else 1


def check_batching(
    batch: int, micro_batch: int | None, workers: int, min_workers: int | None = None, *, setting: str, needs_two: bool = False
) -> None:
    """Check that a global batch can be divided among the workers.

    Args:
        batch: number of examples in a global batch.
        micro_batch: largest number of examples that a worker computes at once; None for no limit.
        workers: number of workers.
        min_workers: smallest number of workers that training may continue with after failures. None: always `workers`.
        setting: section of the settings that error messages name, such as "train.stage1".
        needs_two: whether a worker that trains alone must compute at least 2 examples at once (see `Architecture`).

    Raises:
        UserError: if a worker would get no example, `min_workers` exceeds `workers`, `micro_batch` exceeds `batch`, or a worker
            that trains alone would compute a single example at once although it needs two.
    """
    if min_workers is not None and min_workers > workers:
        raise UserError(
            f"compute.min_workers {min_workers} is more than compute.workers {workers}: lower the first or raise the second"
        )
    if batch < workers:
        raise UserError(
            f"{setting}.batch {batch} leaves some of {workers} workers without an example: "
            f"take at least {workers}, or lower compute.workers to {batch}"
        )
    if micro_batch is not None and micro_batch > batch:
        raise UserError(f"{setting}.micro_batch {micro_batch} is more than {setting}.batch {batch}: lower it, or leave it empty")
    alone = (workers if min_workers is None else min_workers) == 1
    if needs_two and alone and batch // micro_batch_count(batch, 1, micro_batch) < 2:
        reason = " makes a single worker compute one example at once, and batch norm after DeconvNet's fc6 needs at least 2"
        if batch == 1:
            raise UserError(f"{setting}.batch 1{reason}: raise it")
        more = ", or raise compute.min_workers to 2" if workers > 1 else ""
        raise UserError(
            f"{setting}.micro_batch {micro_batch} with {setting}.batch {batch}{reason}: "
            f"take {2 + batch % 2} or more, leave it empty{more}"
        )
