"""`PruningConfig`: which visual tokens are kept, as a small file of its own or inside a model's config.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

from transformers_litelvlm.pruning import Pruner, build_pruner, get_pruner, resolve_budget
from transformers_litelvlm.pruning.selection import check_budget, check_retention_ratio
from transformers_litelvlm.utils.files import write_atomically
from transformers_litelvlm.version import __version__


logger = logging.get_logger(__name__)

PRUNING_CONFIG_NAME = "pruning_config.json"
TOKEN_ORDERS = ("raster", "reference")
POSITION_POLICIES = ("original", "compact")

# Ratios, so that a preset means the same for every image size; at 576 visual tokens they are 64, 128 and 192.
DEFAULT_PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"budget": None, "retention_ratio": 1 / 9},
    "balanced": {"budget": None, "retention_ratio": 2 / 9},
    "accurate": {"budget": None, "retention_ratio": 1 / 3},
    "faithful": {"token_order": "reference", "position_ids": "compact"},
}

# What PreTrainedConfig itself may put into or read from a serialized config.
_UPSTREAM_KEYS = {
    "model_type",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "torch_dtype",
    "num_labels",
    "output_attentions",
    "attn_implementation",
    "experts_implementation",
    "per_layer_config",
}


class PruningConfig(PreTrainedConfig):
    """Configuration of visual-token pruning.

    It is the `pruning_config` of a model's config, and can be saved, loaded and pushed alone as `pruning_config.json`
    beside any checkpoint. Every value is checked when it is set, at construction and later.

    Args:
        method (`str`, defaults to `"litelvlm"`): a registered method, see [`list_pruners`].
        budget (`int`, *optional*): visual tokens kept per image. `None` together with `retention_ratio=None` (default)
            switches pruning off, and so does a budget of at least as many tokens as there are.
        retention_ratio (`float`, *optional*): fraction of the visual tokens KEPT, in (0, 1]; see [`resolve_budget`]
            for the rounding. Excludes `budget`.
        method_options (`dict`, *optional*): hyper-parameters of the method, its own defaults if absent.
        token_order (`"raster"`, `"reference"`, *optional*): order in which the kept tokens enter the language model,
            by position in the image or as the method's published code puts them. `None`: the method's official choice.
        position_ids (`"original"`, `"compact"`, *optional*): kept tokens and the text after them keep the positions of
            the unpruned prompt, or are renumbered without gaps. `None`: the method's official choice.
        presets (`dict[str, dict]`, *optional*): named changes of this config, for [`apply_preset`].

    Raises:
        ValueError: for a value out of range, an unknown method, option or preset; the message names the argument, the
            value and what would be accepted.
    """

    model_type = "litelvlm_pruning"

    method: str = "litelvlm"
    budget: int | None = None
    retention_ratio: float | None = None
    method_options: dict | None = None
    token_order: str | None = None
    position_ids: str | None = None
    presets: dict | None = None
    litelvlm_version: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.method_options = dict(self.method_options or {})
        self.presets = {name: dict(changes) for name, changes in (self.presets or DEFAULT_PRESETS).items()}
        self.litelvlm_version = self.litelvlm_version or __version__
        unknown = sorted(set(kwargs) - _UPSTREAM_KEYS)
        if unknown:
            logger.warning(
                f"PruningConfig ignores the unknown keys {unknown}: they may come from a version newer than "
                f"{__version__} (the file says {self.litelvlm_version})."
            )
        super().__post_init__(**{key: value for key, value in kwargs.items() if key in _UPSTREAM_KEYS})
        self._check_together()

    def __setattr__(self, key: str, value: Any) -> None:
        value = _check_field(key, value)
        is_live = self.__dict__.get("_post_init_done", False) and key in type(self).__dataclass_fields__
        previous = self.__dict__.get(key)
        super().__setattr__(key, value)
        if is_live:
            try:
                self._check_together()
            except ValueError:
                super().__setattr__(key, previous)
                raise

    def _check_together(self) -> None:
        """What no single field can tell. Raises ValueError."""
        resolve_budget(1, self.budget, self.retention_ratio)
        build_pruner(self.method, **(self.method_options or {}))

    def replace(self, **changes: Any) -> PruningConfig:
        """A copy with several fields changed at once, checked as a whole.

        A new `budget` drops the old `retention_ratio` and the other way round; a new `method` drops the old options.
        """
        unknown = sorted(set(changes) - set(type(self).__dataclass_fields__))
        if unknown:
            raise ValueError(f"PruningConfig has no field {unknown}.")
        if changes.get("budget") is not None:
            changes.setdefault("retention_ratio", None)
        if changes.get("retention_ratio") is not None:
            changes.setdefault("budget", None)
        if changes.get("method", self.method) != self.method:
            changes.setdefault("method_options", {})
        own = {name: getattr(self, name) for name in PruningConfig.__annotations__ if name != "litelvlm_version"}
        return type(self)(**{**own, **changes})

    def apply_preset(self, name: str) -> PruningConfig:
        """A copy changed by the preset `name`.

        Raises:
            ValueError: if there is no such preset; the message lists the known ones.
        """
        if name not in self.presets:
            raise ValueError(f"Unknown `pruning_preset` {name!r}. Known presets: {', '.join(sorted(self.presets))}.")
        return self.replace(**self.presets[name])

    @property
    def is_on(self) -> bool:
        """Whether pruning is asked for; a budget that is no smaller than an image's token count still cuts nothing."""
        return self.method != "none" and (self.budget is not None or self.retention_ratio is not None)

    def resolve(self, num_tokens: int) -> int | None:
        """Visual tokens kept of `num_tokens`; `None` if pruning is off: nothing is set, or nothing would be cut."""
        if not self.is_on:
            return None
        budget = resolve_budget(num_tokens, self.budget, self.retention_ratio)
        return None if budget >= num_tokens else budget

    def build_pruner(self) -> Pruner:
        return build_pruner(self.method, **self.method_options)

    @property
    def resolved_token_order(self) -> str:
        return self.token_order or get_pruner(self.method).official_token_order

    @property
    def resolved_position_ids(self) -> str:
        return self.position_ids or get_pruner(self.method).official_position_ids

    def to_dict(self) -> dict[str, Any]:
        """Our own fields; what upstream keeps in every config (labels, dtype, ...) means nothing here."""
        inherited = super().to_dict()
        return {
            name: inherited[name] for name in (*PruningConfig.__annotations__, "model_type", "transformers_version")
        }

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read `pruning_config.json` of a folder or Hub repository, not its config.json."""
        kwargs.setdefault("_configuration_file", PRUNING_CONFIG_NAME)
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `pruning_config.json` into `save_directory`, and nothing else.

        Args:
            save_directory: created if it does not exist.
            push_to_hub: upload the file too; `kwargs` go to [`push_to_hub`], `repo_id` defaults to the folder's name.
        """
        content = {key: value for key, value in self.to_diff_dict().items() if value not in (None, {})}
        with write_atomically(save_directory) as staging:
            text = json.dumps(content, indent=2, sort_keys=True) + "\n"
            Path(staging, PRUNING_CONFIG_NAME).write_text(text, encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.fspath(save_directory))), **kwargs)


def _check_field(key: str, value: Any) -> Any:
    """Check one field of a [`PruningConfig`] on its own; returns the value to store."""
    if value is None:
        if key == "method":
            raise ValueError("`method` must be the name of a pruning method, got None. Use 'none' to switch off.")
        return value
    if key == "budget":
        return check_budget(value)
    if key == "retention_ratio":
        return check_retention_ratio(value)
    if key == "method":
        return get_pruner(value).name
    choices = {"token_order": TOKEN_ORDERS, "position_ids": POSITION_POLICIES}.get(key)
    if choices is not None and value not in choices:
        raise ValueError(f"`{key}` must be None or one of {', '.join(map(repr, choices))}, got {value!r}.")
    if key in ("method_options", "presets") and not isinstance(value, dict):
        raise ValueError(f"`{key}` must be a dict, got {value!r}.")
    return value
