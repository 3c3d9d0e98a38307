"""What one call prunes: read from the config once, so that other threads may change it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.pruning.base import Pruner, TokenPruner
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.selection import resolve_budget
from transformers_litelvlm.utils.messages import is_first


logger = logging.get_logger(__name__)


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
        inside_language_model: the method, if pruning is on and it drops tokens after decoder layers, or else the
            second method.
        then: settings of the second method.
    """

    pruner: Pruner
    budget: int | None
    retention_ratio: float | None
    in_raster_order: bool
    keeps_positions: bool
    is_on: bool = True
    before_language_model: TokenPruner | None = None
    inside_language_model: LayerPruner | None = None
    then: PruningSettings | None = None

    @classmethod
    def of(cls, config: Any, pruning_config: PruningConfig | PruningSettings | dict | None = None) -> PruningSettings:
        """The settings of a model's `config`, or those of `pruning_config` in their place; of a dict, the fields that
        it has. Settings are themselves.

        Raises:
            ValueError: if it is no setting, or the family cannot follow it.
        """
        if isinstance(pruning_config, cls):
            return pruning_config
        pruning = config.pruning_config
        if pruning_config is not None:
            pruning = pruning.changed_by(pruning_config)
        config.check_pruning(pruning)
        (pruner, second, _), is_on = pruning.build(), pruning.is_on
        then = None if second is None or not is_on else cls.of(config, second)
        inside = pruner if then is None else then.pruner
        order = pruning.token_order or config.default_token_order or pruner.official_token_order
        positions = pruning.position_ids or config.default_position_ids or pruner.official_position_ids
        return cls(
            pruner=pruner,
            budget=pruning.budget if is_on else None,
            retention_ratio=pruning.retention_ratio if is_on else None,
            in_raster_order=order == "raster",
            keeps_positions=positions == "original",
            is_on=is_on,
            before_language_model=pruner if is_on and isinstance(pruner, TokenPruner) else None,
            inside_language_model=inside if is_on and isinstance(inside, LayerPruner) else None,
            then=then,
        )

    def budgets(self, sizes: Sequence[int]) -> list[int]:
        """Visual tokens kept of images or videos with so many; all of them if pruning is off."""
        return [resolve_budget(size, self.budget, self.retention_ratio) for size in sizes]

    def cuts(self, sizes: Sequence[int]) -> bool:
        """Whether any of the images or videos with so many visual tokens loses some.

        If the budget is above all of `sizes`, a warning says so: that the result is unpruned can be seen nowhere else.
        A budget of exactly N does not warn, since it is a way to ask for all tokens.
        """
        if not self.is_on:
            return False
        is_above = self.budget is not None and bool(sizes) and self.budget > max(sizes)
        # Once for each budget, as sizes of images may differ in every call.
        if is_above and not torch.compiler.is_compiling() and is_first(f"the budget {self.budget} is too large"):
            logger.warning(
                f"The budget of {self.budget} is above the number of visual tokens, {max(sizes)}: "
                f"{self.pruner.name!r} prunes nothing. This is said once for each budget."
            )
        return self.budgets(sizes) != list(sizes)
