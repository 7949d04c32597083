"""Why a conversion ends without a bundle."""

from __future__ import annotations

from collections.abc import Sequence

from r2d_edge.errors import R2DError


class ConversionError(R2DError):
    """The checkpoint cannot be converted (or an adapter merged) as asked.

    Attributes:
        reasons: every reason found, not only the first.
    """

    def __init__(self, reasons: Sequence[str], heading: str = "the checkpoint cannot be converted") -> None:
        self.reasons = tuple(reasons)
        lines = "\n".join(f"  - {reason}" for reason in self.reasons)
        super().__init__(f"{heading}:\n{lines}")


class ParityError(R2DError):
    """What was written does not compute what it was made from.

    Attributes:
        row: id of the worst golden row.
        measured: its largest difference, in nats unless the message says otherwise.
        bound: what was allowed, alike.
    """

    def __init__(
        self, unequal: str, what: str, row: str, measured: float, bound: float, remedy: str = "", unit: str = " nats"
    ) -> None:
        self.row = row
        self.measured = measured
        self.bound = bound
        super().__init__(
            f"{unequal}: on golden row {row!r} the {what} differ by {measured:.4g}{unit}, allowed are {bound:.4g}"
            f"{f' ({remedy})' if remedy else ''}; nothing was written"
        )
