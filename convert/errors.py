"""Why a conversion ends without a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from r2d_edge.errors import R2DError


class ConversionError(R2DError):
    """The checkpoint cannot be converted as asked.

    Attributes:
        reasons: every reason found, not only the first.
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  - {reason}" for reason in self.reasons)
        super().__init__(f"the checkpoint cannot be converted:\n{lines}")


class ParityError(R2DError):
    """The exported model does not compute what the checkpoint computes.

    Attributes:
        row: id of the worst golden row.
        measured: its largest difference, in nats.
        bound: what was allowed, in nats.
    """

    def __init__(self, what: str, row: str, measured: float, bound: float, compute_type: str, option: str) -> None:
        self.row = row
        self.measured = measured
        self.bound = bound
        super().__init__(
            f"the exported {compute_type} model is not the checkpoint's equal: on golden row {row!r} the {what} "
            f"differ by {measured:.4g} nats, allowed are {bound:.4g} ({option}); no bundle was written"
        )
