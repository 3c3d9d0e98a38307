"""The options of an analysis."""

from __future__ import annotations

from dataclasses import dataclass

from transformers_litelvlm.evaluation.arguments import DataArguments, option


DESCRIPTION = (
    "Check on a checkpoint and data whether the reversed ranking works: which scores find the tokens of the referent,"
    " what the language model itself attends to, and which choice of tokens gives the best masks at equal budgets."
    " Writes analysis.json, report.md, measurements.parquet and figures. Started again with the same options after an"
    " interruption, it continues."
)


@dataclass(frozen=True)
class AnalysisArguments(DataArguments):
    """What to analyse, on images.

    Args:
        budgets: visual tokens kept in the comparison of selections, or, below 1, the fraction of them.
        seeds: of the random selection.
        coverage: a visual token belongs to the referent if the mask covers at least this share of its cell.
        leave_one_out: number of sentences per image, the first ones, that are run again once for each visual token,
            with that token removed; 0 for none. This takes most of the time.
        examples: number of images, the first ones, that are drawn.
        The rest as [`~evaluation.arguments.DataArguments`].

    Raises:
        ValueError: an option is out of range; names it and its value.
    """

    budgets: list[int | float] = option(
        "visual tokens kept; below 1, the fraction of them", [0.3333, 0.2222, 0.1111], metavar="N"
    )
    seeds: list[int] = option("of the random selection", [0, 1, 2], metavar="SEED")
    coverage: float = option("share of a token's cell that the mask covers at least, if it is the referent's", 0.3)
    leave_one_out: int = option(
        "sentences per image that are run again without each visual token in turn", 1, metavar="N"
    )
    examples: int = option("images that are drawn", 4, metavar="N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budgets:
            raise ValueError("`budgets` is empty: name at least one.")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"`coverage` must be above 0 and at most 1, got {self.coverage!r}.")
        for name in ("leave_one_out", "examples"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}.")
