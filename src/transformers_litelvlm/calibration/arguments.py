"""The options of a calibration: those of an evaluation, with other defaults, and a few more."""

from __future__ import annotations

from dataclasses import dataclass

from transformers_litelvlm.evaluation.arguments import EvaluationArguments, option


DESCRIPTION = (
    "Find the pruning setting that suits a model and its data: candidates are measured on one split, on more and more"
    " images, and those that are significantly worse than the best are left out. At each budget the simplest setting"
    " that is left is chosen, and measured once on another split. Started again with the same options after an"
    " interruption, it continues."
)
PRESETS = ("fast", "balanced", "accurate")
# What a setting must beat to be chosen, and what is published: both always take part, as the checkpoint lays them out.
BASELINE, PUBLISHED = "random", "litelvlm"
# Before the language model, where equal budgets are equal costs. Others can be named.
METHODS = (
    "uniform",
    "cls_attention",
    "divprune",
    "visionzip",
    "vispruner",
    "litelvlm",
    "cdpruner",
    "litelvlm:ranking=forward",
    "litelvlm:context_share=1.0",
    "litelvlm:context_share=0.75",
    "litelvlm:context_share=0.5",
)
AS_SET = "checkpoint"
LAYOUTS = (AS_SET, "raster+original", "raster+compact", "reference+original", "reference+compact")


@dataclass(frozen=True)
class CalibrationArguments(EvaluationArguments):
    """What to choose from, on which data.

    `output_dir`, `model`, `dataset`, `source`, `seeds`, `protocol`, `batch_size` and `on_unreadable` are those of an
    evaluation.

    Args:
        split: on which the settings are chosen.
        test_split: on which the chosen ones are measured, once; another one than `split`.
        methods: candidates, as those of an evaluation. `random`, which the others must beat, and the published default
            `litelvlm` are always measured.
        layouts: in which each method is tried: `"checkpoint"` as the checkpoint is set, or `TOKEN_ORDER+POSITION_IDS`.
        budgets: three, from the smallest: of the presets `fast`, `balanced` and `accurate`.
        max_images: most images, or videos, of `split`.
        first_images: images, or videos, of the first round; every round doubles them.
        sampling_seed: which images of `split` are taken, and in which order.
        test_images: only the first images of `test_split`.
        metric: what is compared; gIoU by default, J&F of videos.
        confidence: that no setting was left out, at a budget, that is in truth the best; and of a single comparison
            with the best, when one is chosen.
        smallest_difference: of the metric, that would matter; says how many images are needed where none is seen.
        write: change the checkpoint: its presets, and its card.

    Raises:
        ValueError: an option is out of range; names it and its value.
    """

    split: str = option("split on which settings are chosen", "validation", metavar="NAME")
    methods: list[str] = option(
        "candidates, NAME or NAME:KEY=VALUE,... ; random and litelvlm are always measured",
        list(METHODS),
        metavar="METHOD",
    )
    budgets: list[int | float] = option(
        "visual tokens kept by the presets fast, balanced and accurate; below 1, the fraction of them",
        [1 / 9, 2 / 9, 1 / 3],
        metavar="N",
    )
    max_images: int | None = option("most images, or videos, of the split", 256, metavar="N")
    test_split: str = option("split on which the chosen settings are measured, once", "test", metavar="NAME")
    test_images: int | None = option("only its first images, or videos", None, metavar="N")
    layouts: list[str] = option(
        "in which each candidate is tried: checkpoint (as it is set) or TOKEN_ORDER+POSITION_IDS",
        list(LAYOUTS),
        choices=LAYOUTS,
        metavar="LAYOUT",
    )
    first_images: int = option("images, or videos, of the first round; every round doubles them", 16, metavar="N")
    sampling_seed: int = option("which images of the split are taken, and in which order", 0, metavar="SEED")
    metric: str | None = option("what is compared (default: gIoU, J&F of videos)", None, metavar="NAME")
    confidence: float = option("that the best setting of a budget was not left out", 0.95, metavar="P")
    smallest_difference: float = option("of the metric, that would matter", 0.02, metavar="D")
    write: bool = option("write the presets into the checkpoint, and what they give into its card", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_images", "test_images"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
        if type(self.sampling_seed) is not int or self.sampling_seed < 0:
            raise ValueError(f"`sampling_seed` must be a non-negative integer, got {self.sampling_seed!r}.")
        for name in ("confidence", "smallest_difference"):
            value = getattr(self, name)
            if type(value) is not float or not 0 < value < 1:
                raise ValueError(f"`{name}` must be a number between 0 and 1, got {value!r}.")
        sizes = self.budgets
        if len(sizes) != len(PRESETS) or len(set(map(type, sizes))) != 1 or sizes != sorted(set(sizes)):
            raise ValueError(
                f"`budgets` must be three integers or three fractions, from the smallest, for {', '.join(PRESETS)}, "
                f"got {sizes!r:.80}."
            )
        if not isinstance(self.layouts, list) or not self.layouts or set(self.layouts) - set(LAYOUTS):
            raise ValueError(f"`layouts` must be one or more of {', '.join(LAYOUTS)}, got {self.layouts!r:.80}.")
        if self.test_split == self.split:
            raise ValueError(
                f"`test_split` is `split`, {self.split!r:.80}: what was chosen on a split cannot be confirmed on it. "
                "Name another one."
            )

    @property
    def levels(self) -> dict[str, int | float]:
        """The budget, or ratio, of every preset."""
        return dict(zip(PRESETS, self.budgets, strict=True))
