"""What one call prunes: read from the config once, so that other threads may change it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.pruning.base import Pruner, TokenPruner
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.selection import resolve_budget


@dataclass(frozen=True)
class PruningSettings:
    """The pruning settings of one call.

    Attributes:
        pruner: the method.
        budget, retention_ratio: at most one of them; neither means that pruning is off.
        in_raster_order: kept tokens enter the language model by their place in the picture, else as the method says.
        keeps_positions: kept tokens keep the positions of the unpruned prompt, else positions are renumbered.
        is_on: whether pruning is asked for; a budget that no image exceeds still cuts nothing.
        before_language_model: the method, if pruning is on and it selects from what the vision tower gives.
        inside_language_model: the method, if pruning is on and it drops tokens after decoder layers.
    """

    pruner: Pruner
    budget: int | None
    retention_ratio: float | None
    in_raster_order: bool
    keeps_positions: bool
    is_on: bool = field(init=False)
    before_language_model: TokenPruner | None = field(init=False)
    inside_language_model: LayerPruner | None = field(init=False)

    @classmethod
    def of(cls, config: Any, pruning_config: PruningConfig | dict | None = None) -> PruningSettings:
        """The settings of a model's `config`, or those of `pruning_config` in their place.

        Raises:
            ValueError: if the family cannot follow `pruning_config`.
        """
        pruning = config.pruning_config if pruning_config is None else pruning_config
        pruning = PruningConfig(**pruning) if isinstance(pruning, dict) else pruning
        order, positions = config.order_and_positions(pruning)
        is_on = pruning.is_on
        return cls(
            pruner=pruning.build_pruner(),
            budget=pruning.budget if is_on else None,
            retention_ratio=pruning.retention_ratio if is_on else None,
            in_raster_order=order == "raster",
            keeps_positions=positions == "original",
        )

    def __post_init__(self) -> None:
        is_on = self.budget is not None or self.retention_ratio is not None
        object.__setattr__(self, "is_on", is_on)
        for name, kind in (("before_language_model", TokenPruner), ("inside_language_model", LayerPruner)):
            object.__setattr__(self, name, self.pruner if is_on and isinstance(self.pruner, kind) else None)

    def budgets(self, sizes: Sequence[int]) -> list[int]:
        """Visual tokens kept of images or videos with so many; all of them if pruning is off."""
        return [resolve_budget(size, self.budget, self.retention_ratio) for size in sizes]

    def cuts(self, sizes: Sequence[int]) -> bool:
        """Whether any of the images or videos with so many visual tokens loses some."""
        return self.is_on and self.budgets(sizes) != list(sizes)
