"""How many rows the batches of a data set have, for steps that know it when they are traced."""

from __future__ import annotations

from typing import Any, NamedTuple


class BatchSizes(NamedTuple):
    """The rows of global batches.

    Attributes:
        rows: Of every batch but smaller ones.
        every: Steps in a pass over the data.
        smaller: Whether the last batch of a pass is smaller.
        start: The step, of the first pass, that iteration begins with.
    """

    rows: int
    every: int
    smaller: bool
    start: int = 0

    @classmethod
    def of(cls, dataset: Any) -> BatchSizes | None:
        """Those of one of `tfgpu.data`; of any other data set nothing is known."""
        rows, every = (getattr(dataset, name, None) for name in ("batch_size", "steps_per_epoch"))
        if rows is None or every is None:
            return None
        smaller = every * rows > dataset.num_examples
        return cls(rows, every, smaller=smaller, start=dataset.start_step)

    def full(self, end: int, steps: int) -> tuple[int, int | None]:
        """How many of some batches are full, before a smaller one.

        Args:
            end: Of iteration, the step after the last of them.
            steps: How many they are.

        Returns:
            The number, and the rows of a full batch; None where a smaller batch is not the last.
        """
        if not self.smaller:
            return steps, self.rows
        end += self.start
        smaller = [step for step in range(end - steps, end) if (step + 1) % self.every == 0]
        if not smaller:
            return steps, self.rows
        return (steps - 1, self.rows) if smaller == [end - 1] else (steps, None)
