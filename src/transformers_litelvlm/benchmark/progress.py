"""What a benchmark says while it works."""

from __future__ import annotations

from typing import Any


class Progress:
    """Is told how far a benchmark is, and says nothing; to be subclassed.

    A run is one call of the model, as a user calls it. Nothing is told while the clock runs.
    """

    def says(self, message: str) -> None:
        """What happens next."""

    def expects(self, runs: int, seconds_of_one: float, seconds: float) -> None:
        """How much there is to do, once it can be said.

        Args:
            runs: of the model, all in all.
            seconds_of_one: mean of an unpruned and a pruned run, just now.
            seconds: from now on, estimated from it.
        """

    def ran(self, runs: int = 1) -> None:
        """So many further runs are done."""

    def reached(self, runs: int) -> None:
        """So many runs are done since the beginning, or need not be done."""

    def measured(self, point: dict[str, Any]) -> None:
        """A further entry of `points` in the result."""
