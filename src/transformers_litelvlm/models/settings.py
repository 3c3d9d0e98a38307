"""What one call prunes: read from the config once, so that other threads may change it meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    pruner: Pruner
    budget: int | None
    retention_ratio: float | None
    in_raster_order: bool
    keeps_positions: bool

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

    @property
    def is_on(self) -> bool:
        """Whether pruning is asked for; a budget that no image exceeds still cuts nothing."""
        return self.budget is not None or self.retention_ratio is not None

    @property
    def before_language_model(self) -> TokenPruner | None:
        """The method, if it selects from what the vision tower gives and pruning is on."""
        return self.pruner if self.is_on and isinstance(self.pruner, TokenPruner) else None

    @property
    def inside_language_model(self) -> LayerPruner | None:
        """The method, if it drops tokens after decoder layers and pruning is on."""
        return self.pruner if self.is_on and isinstance(self.pruner, LayerPruner) else None

    def budget_of(self, num_tokens: int) -> int:
        """Visual tokens kept of `num_tokens`; all of them if pruning is off."""
        return resolve_budget(num_tokens, self.budget, self.retention_ratio)

    def cuts(self, num_tokens: int) -> bool:
        """Whether a picture of `num_tokens` visual tokens loses some."""
        return self.budget_of(num_tokens) < num_tokens
