"""`PruningConfig`: which visual tokens are kept, as a small file of its own or inside a model's config.json."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import InvalidVersion, Version
from transformers import PreTrainedConfig
from transformers.utils import logging

from transformers_litelvlm.pruning import LayerPruner, Pruner, TokenPruner, build_pruner, get_pruner, resolve_budget
from transformers_litelvlm.pruning.selection import check_budget, check_retention_ratio
from transformers_litelvlm.utils.files import write_atomically
from transformers_litelvlm.utils.hub_names import check_loadable
from transformers_litelvlm.utils.messages import did_you_mean, quoted
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
    # LiteLVLM‡ of the paper's appendix "primarily uses context-aware tokens"; no share is known, so this one is ours:
    # half way between half of the budget and all of it. docs/methods/litelvlm.md says so.
    "context": {"method": "litelvlm", "method_options": {"context_share": 0.75}},
}

# What PreTrainedConfig itself may put into or read from a serialized config.
_UPSTREAM_KEYS = {
    "model_type",
    "transformers_version",
    "dtype",
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


class Built(NamedTuple):
    """What a [`PruningConfig`] stands for.

    Attributes:
        pruner: the method with its options.
        then: the settings of the second method; `None` if there is none.
        made_of: a copy of the fields that may be changed in place.
    """

    pruner: Pruner
    then: PruningConfig | None
    made_of: tuple[dict[str, Any], dict[str, Any] | None]


class PruningConfig(PreTrainedConfig):
    """Configuration of visual-token pruning.

    It is the `pruning_config` of a model's config, and can be saved, loaded and pushed alone as `pruning_config.json`
    beside any checkpoint. Every value is checked when it is set, at construction and later, alone and together with
    the others; what is refused changes nothing.

    Args:
        method: a registered method, see [`list_pruners`].
        budget: visual tokens kept per image. `None` together with `retention_ratio=None` (default) switches pruning
            off, and so does a budget of at least as many tokens as there are.
        retention_ratio: fraction of the visual tokens KEPT, in (0, 1]; see [`resolve_budget`] for the rounding.
            Excludes `budget`.
        method_options: hyper-parameters of the method; its own defaults for those that are absent.
        then: a second method, inside the language model, for what the first one keeps before it: a dict of `method`,
            `budget` or `retention_ratio` (of the visual tokens that the first one keeps), and, if wanted,
            `method_options`, `token_order` and `position_ids`.
        token_order: `"raster"` or `"reference"`, the order in which the kept tokens enter the language model: by
            position in the image, or as the method's published code puts them. `None`: the method's official choice.
        position_ids: `"original"` or `"compact"`: kept tokens and the text after them keep the positions of the
            unpruned prompt, or are renumbered without gaps. `None`: the method's official choice.
        presets: named changes of this config, for [`apply_preset`].

    Raises:
        ValueError: for an unknown field, method, option or preset and for a value out of range; the message names the
            argument, the value and what would be accepted. Unknown keys of a file only warn: it may come from a newer
            version.
        AttributeError: if an attribute is set that is no field.
    """

    model_type = "litelvlm_pruning"

    method: str = "litelvlm"
    budget: int | None = None
    retention_ratio: float | None = None
    method_options: dict | None = None
    then: dict | None = None
    token_order: str | None = None
    position_ids: str | None = None
    presets: dict | None = None
    litelvlm_version: str | None = None
    _left_out = frozenset[str]()  # presets of a file that this version does not understand

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(set(kwargs) - _UPSTREAM_KEYS)
        super().__post_init__(**kwargs)
        self._built = _build(self.__dict__)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in FIELDS:
            value = _check_field(key, value)
            if "_built" in self.__dict__:
                self._built = _build({**self.__dict__, key: value})
        elif not key.startswith("_") and not hasattr(type(self), key):
            raise AttributeError(_no_field([key], quoted(key)))
        super().__setattr__(key, value)

    @classmethod
    def of(cls, value: Any) -> PruningConfig:
        """`value`, or what it stands for if it is a dict. Raises ValueError if it is neither."""
        value = cls(**value) if isinstance(value, dict) else value
        if not isinstance(value, cls):
            raise ValueError(f"`pruning_config` must be a PruningConfig or a dict, got {quoted(value)}.")
        return value

    def changed_by(self, value: Any) -> PruningConfig:
        """`value`; if it is a dict, this config with the fields that it has changed, as by [`replace`]. Raises
        ValueError if it is neither."""
        if not isinstance(value, dict):
            return self.of(value)
        return self.replace(**{name: field for name, field in value.items() if name not in _UPSTREAM_KEYS})

    def replace(self, **changes: Any) -> PruningConfig:
        """A copy with several fields changed at once, checked as a whole.

        A `budget`, `None` too, drops the old `retention_ratio`; a new ratio drops the old budget; a new `method` drops
        the old options and the second method.
        """
        _refuse_unknown(set(changes) - set(FIELDS))
        if "budget" in changes:
            changes.setdefault("retention_ratio", None)
        if changes.get("retention_ratio") is not None:
            changes.setdefault("budget", None)
        if changes.get("method", self.method) != self.method:
            changes.setdefault("method_options", {})
            changes.setdefault("then", None)
        fields = {name: self.__dict__[name] for name in FIELDS} | {"litelvlm_version": __version__} | changes
        new = copy.copy(self)  # much faster than upstream's constructor
        new.__dict__.update({name: _check_field(name, value) for name, value in fields.items()})
        new.__dict__["_built"] = _build(new.__dict__)
        return new

    def apply_preset(self, name: str) -> PruningConfig:
        """A copy changed by the preset `name`: the checkpoint's own, or else that of this package.

        Raises:
            ValueError: if there is none that this version understands; the message lists the known ones.
        """
        not_meant = {left_out: DEFAULT_PRESETS.get(left_out) for left_out in self._left_out}
        presets = {key: own for key, own in (DEFAULT_PRESETS | self.presets).items() if own != not_meant.get(key)}
        if not isinstance(name, str) or name not in presets:
            raise ValueError(f"Unknown `pruning_preset` {quoted(name)}. Known presets: {', '.join(sorted(presets))}.")
        with _of_version(self.litelvlm_version):
            return self.replace(**presets[name])

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
        """The method with its options; the same object until a field changes."""
        return self.build().pruner

    def build(self) -> Built:
        """The method and the settings of the second one; the same objects until a field changes."""
        built: Built = self.__dict__["_built"]
        if built.made_of != (self.method_options, self.then):  # they were changed in place
            built = self.__dict__["_built"] = _build(self.__dict__)
        return built

    @property
    def methods(self) -> list[str]:
        """Names of the methods: of one, or of the first and of that of `then`."""
        return [self.method] if self.then is None else [self.method, self.then["method"]]

    @property
    def resolved_token_order(self) -> str:
        return self.token_order or get_pruner(self.method).official_token_order

    @property
    def resolved_position_ids(self) -> str:
        return self.position_ids or get_pruner(self.method).official_position_ids

    def to_dict(self) -> dict[str, Any]:
        """Our own fields; what upstream keeps in every config (labels, dtype, ...) means nothing here."""
        inherited = super().to_dict()
        own = {name: inherited[name] for name in (*FIELDS, "model_type", "transformers_version")}
        return _plain(type(self).__name__, own)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Read the content of a file. Keys and presets that this version does not know are left out, with a warning.

        Keywords that are fields are taken together, as by [`replace`]; others are errors, or given back if
        `return_unused_kwargs` is set.
        """
        version, presets = config_dict.get("litelvlm_version"), config_dict.get("presets")
        named = presets.items() if isinstance(presets, dict) else ()
        left_out = {name for name, own in named if isinstance(own, dict) and set(own) - set(FIELDS)}
        known = {key: value for key, value in config_dict.items() if key in FIELDS or key in _UPSTREAM_KEYS}
        if left_out:  # the package's own presets of these names are not what the file means
            known["presets"] = {key: own for key, own in (DEFAULT_PRESETS | presets).items() if key not in left_out}
        if unknown := sorted(set(config_dict) - set(known) | {f"presets.{name}" for name in left_out}):
            logger.warning(
                f"PruningConfig ignores the unknown keys {quoted(unknown)}: they may come from a version newer than "
                f"{__version__} (the file says {version}). Upgrade transformers-litelvlm to use them."
            )
        changes = {name: kwargs.pop(name) for name in FIELDS if name in kwargs}
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        with _of_version(version):
            config, unused = super().from_dict(known, return_unused_kwargs=True, **kwargs)
        config._left_out = frozenset(left_out)
        if not wants_unused:
            _refuse_unknown({name for name in unused if not name.startswith("_")} - _UPSTREAM_KEYS)
        config = config.replace(**changes) if changes else config
        return (config, unused) if wants_unused else config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike):
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read `pruning_config.json` of a folder or Hub repository, not its config.json."""
        check_loadable(pretrained_model_name_or_path, **kwargs)
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
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **kwargs)


# Those of this class, in the order of their definition; not what every config of Transformers has.
FIELDS = tuple(PruningConfig.__annotations__)
# What a call or a second method may change.
SETTINGS = tuple(name for name in FIELDS if name not in ("presets", "litelvlm_version"))
THEN_FIELDS = tuple(name for name in SETTINGS if name != "then")


def _refuse_unknown(names: set[str]) -> None:
    if names:
        raise ValueError(_no_field(sorted(names), quoted(sorted(names))))


def _no_field(names: list[str], shown: str) -> str:
    fields = [name.removeprefix("pruning_") for name in names]
    hint = " `apply_preset(name)` uses a preset." if "preset" in fields else did_you_mean(fields, FIELDS)
    return f"PruningConfig has no field {shown}.{hint} Its fields: {', '.join(FIELDS)}."


def _build(fields: dict[str, Any]) -> Built:
    """Check what no single field can tell."""
    resolve_budget(1, fields["budget"], fields["retention_ratio"])
    options, then = fields["method_options"], fields["then"]
    pruner = build_pruner(fields["method"], **options)
    return Built(pruner, None if then is None else _build_then(then, pruner), copy.deepcopy((options, then)))


def _build_then(then: dict[str, Any], first: Pruner) -> PruningConfig:
    if unknown := sorted(set(then) - set(THEN_FIELDS)):
        raise ValueError(f"`then` has no field {quoted(unknown)}. Its fields: {', '.join(THEN_FIELDS)}.")
    second = PruningConfig(**then)
    if not isinstance(first, TokenPruner) or not isinstance(second.build_pruner(), LayerPruner):
        raise ValueError(
            "`method` must work before the language model and that of `then` inside it, got "
            f"{first.name!r} and {second.method!r}. `litelvlm methods` says where each works."
        )
    if not second.is_on:
        raise ValueError(f"`then` needs a `budget` or a `retention_ratio`, got {quoted(then)}.")
    return second


def _check_field(key: str, value: Any) -> Any:
    """Check one field of a [`PruningConfig`] on its own; returns the value to store."""
    if key == "method":
        if not isinstance(value, str):
            raise ValueError(
                f"`method` must be the name of a pruning method, got {quoted(value)}. Use 'none' to switch off."
            )
        return get_pruner(value).name
    if key == "budget":
        return None if value is None else check_budget(value)
    if key == "retention_ratio":
        return None if value is None else check_retention_ratio(value)
    if key == "method_options":
        return _plain(key, {} if value is None else value)
    if key == "then":
        return None if value is None else _plain(key, value)
    if key == "presets":
        presets = _plain(key, DEFAULT_PRESETS if value in (None, {}) else value)
        return {name: _check_preset(name, changes) for name, changes in presets.items()}
    if key == "litelvlm_version":
        if value is not None and not isinstance(value, str):
            raise ValueError(f"`litelvlm_version` must be None or a text like {__version__!r}, got {quoted(value)}.")
        return value or __version__
    choices = TOKEN_ORDERS if key == "token_order" else POSITION_POLICIES
    if value is not None and value not in choices:
        raise ValueError(f"`{key}` must be None or one of {', '.join(map(repr, choices))}, got {quoted(value)}.")
    return value


@contextmanager
def _of_version(version: Any) -> Iterator[None]:
    """Says in a ValueError, if it is so, that what is refused was written by a newer version of this package."""
    try:
        yield
    except ValueError as error:
        with suppress(TypeError, InvalidVersion):
            if Version(version) > Version(__version__):
                raise ValueError(f"{error} The file has version {version}: upgrade transformers-litelvlm.") from error
        raise


def _check_preset(name: str, changes: Any) -> dict[str, Any]:
    _check_keys(f"presets[{quoted(name)}]", changes)
    try:
        _refuse_unknown(set(changes) - set(FIELDS))
        for field, value in changes.items():
            if field != "method":  # it may be somebody else's, registered later
                _check_field(field, value)
    except ValueError as error:
        raise ValueError(f"`presets[{quoted(name)}]`: {error}") from error
    return changes


def _plain(name: str, value: Any) -> dict[str, Any]:
    """A copy of a dict in the types of JSON: numbers of NumPy become those of Python. Raises ValueError for others."""

    def number(own: Any) -> int | float:
        if isinstance(own, Real):
            return int(own) if isinstance(own, Integral) else float(own)
        raise ValueError(f"`{name}` must be what a JSON file can hold (numbers, texts, ...), got {quoted(own)}.")

    def refuse(own: str) -> None:
        raise ValueError(f"`{name}` must be what a JSON file can hold, whose numbers are finite, got {own}.")

    return json.loads(json.dumps(_check_keys(name, value), default=number), parse_constant=refuse)


def _check_keys(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"`{name}` must be a dict, got {quoted(value)}; its keys are names.")
    return value
