"""What the configs of all model families share: pruning settings, as one sub-config and as keywords."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers_litelvlm.configuration_pruning import SETTINGS, PruningConfig
from transformers_litelvlm.models.remote_code import InstalledCodeMixin, classes_by_type
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.models.upstream import SubConfigSpec
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.registry import get_pruner
from transformers_litelvlm.utils.hub_names import check_loadable
from transformers_litelvlm.utils.messages import did_you_mean, quoted


# Keyword of from_pretrained -> field of PruningConfig it sets.
PRUNING_ALIASES = {f"pruning_{field}": field for field in SETTINGS}
# All that `from_pretrained` and the pipeline take.
PRUNING_KEYWORDS = ("pruning_config", "pruning_preset", *PRUNING_ALIASES)


def change_pruning(pruning: PruningConfig, keywords: dict[str, Any]) -> PruningConfig:
    """A setting changed by keywords of `from_pretrained`: first `pruning_config`, then the preset, then the others.

    Of a dict as `pruning_config`, the fields that it has are changed.

    Raises:
        ValueError: for a keyword that does not exist, if a budget and a ratio are both given, or as [`PruningConfig`]
            does.
    """
    if unknown := sorted(set(keywords) - set(PRUNING_KEYWORDS)):
        raise ValueError(
            f"Unknown pruning settings {quoted(unknown)}.{did_you_mean(unknown, PRUNING_KEYWORDS)} There are: "
            f"{', '.join(PRUNING_KEYWORDS)}."
        )
    budget, ratio = keywords.get("pruning_budget"), keywords.get("pruning_retention_ratio")
    if budget is not None and ratio is not None:
        raise ValueError(
            f"`pruning_budget` ({quoted(budget)}) and `pruning_retention_ratio` ({quoted(ratio)}) exclude each other: "
            "give one of them."
        )
    if keywords.get("pruning_config") is not None:
        pruning = pruning.changed_by(keywords["pruning_config"])
    if keywords.get("pruning_preset") is not None:
        pruning = pruning.apply_preset(keywords["pruning_preset"])
    changes = {field: keywords[name] for name, field in PRUNING_ALIASES.items() if name in keywords}
    return pruning.replace(**changes) if changes else pruning


class PrunedConfigMixin(InstalledCodeMixin):
    """For configs with a `pruning_config` field: its settings are keywords and attributes of the config, too.

    `pruning_budget`, `pruning_retention_ratio`, `pruning_method`, `pruning_method_options`, `pruning_then`,
    `pruning_token_order`, `pruning_position_ids` and `pruning_preset` are accepted as keywords by the config and by
    `from_pretrained`, and as attributes; they set fields of `pruning_config`.

    `from_pretrained` also reads the config of a checkpoint of the stock class, as one of this class.

    Raises:
        ValueError: as [`PruningConfig`] does; also if both a budget and a ratio are given, and for keywords and
            attributes that begin with `pruning_` and do not exist.
    """

    model_type: str
    pruning_config: Any
    vision_config: Any
    vision_feature_layer: Any

    # Of each class, what it adds to those of the classes before it.
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "pruning_config": SubConfigSpec(config_class=PruningConfig)
    }
    sub_configs: ClassVar[dict[str, type]]

    # Trainer joins what evaluation batches return, and features of pictures of different size cannot be joined.
    keys_to_ignore_at_inference = ["cache", "image_outputs", "video_outputs"]
    # For model cards: what the family is called, and arguments of the image-text-to-text pipeline that ask something.
    family_title: ClassVar[str] = "A model"
    example_question: ClassVar[str] = (
        'text=[{"role": "user", "content": [{"type": "image", "image": "photo.jpg"},'
        ' {"type": "text", "text": "What is this?"}]}]'
    )
    # What the family says if the setting is `None`; `None` leaves it to the method.
    default_token_order: ClassVar[str | None] = None
    default_position_ids: ClassVar[str | None] = None
    # Whether methods that read the class token, or the layers of a CLIP tower, are defined.
    has_class_token: ClassVar[bool] = False
    # Why methods inside the language model are not defined, as part of a message; `None` where they are.
    why_none_inside: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A new mapping: that of upstream's class is shared with every stock model.
        specs: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            specs |= vars(base).get("sub_configs_defaults", {})
        cls.sub_configs_defaults = specs
        # Upstream hands dtypes and attention kernels to every config listed here; these have neither.
        own = ("pruning_config", "grounding_config")
        cls.sub_configs = {
            name: getattr(spec, "config_class", spec) for name, spec in specs.items() if name not in own
        }
        super().__init_subclass__(**kwargs)

    @property
    def num_visual_tokens(self) -> int | None:
        """Visual tokens of an image before pruning; `None` if its size decides."""
        return None

    @property
    def num_tower_layers(self) -> int:
        """Layers of the vision tower that make the visual tokens."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision_config.num_hidden_layers + 1 + layer

    def __post_init__(self, **kwargs: Any) -> None:
        pruning = {name: kwargs.pop(name) for name in list(kwargs) if _is_setting(name)}
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self._check_vision_config()
        self.set_pruning(**pruning)

    def _check_vision_config(self) -> None:
        """Visual tokens are counted with these, before any model is built that would refuse them."""
        for name in ("image_size", "patch_size", "spatial_merge_size", "num_attention_heads"):
            value = getattr(self.vision_config, name, 1)
            for number in value if isinstance(value, list | tuple) else [value]:
                if type(number) is not int or number < 1:
                    raise ValueError(f"`vision_config.{name}` must be a whole number above 0, got {quoted(value)}.")

    def __setattr__(self, key: str, value: Any) -> None:
        if _is_setting(key):
            self.set_pruning(**{key: value})
            return
        is_new = not self.__dict__.get("_post_init_done", False)
        if key == "pruning_config" and not (value is None and is_new):  # upstream starts with None
            value = PruningConfig.of(value)
            self.check_pruning(value)
        super().__setattr__(key, value)

    def check_pruning(self, pruning: Any) -> None:
        """Refuse settings that a family cannot follow. Raises ValueError."""
        if self.why_none_inside is None:
            return
        if inside := [name for name in pruning.methods if issubclass(get_pruner(name), LayerPruner)]:
            raise ValueError(
                f"The method {inside[0]!r} takes tokens out inside the language model, which is not defined for "
                f"{self.family_title}: {self.why_none_inside} Choose a `pruning_method` that works before the "
                "language model, such as 'litelvlm' or 'divprune'."
            )

    def set_pruning(self, **keywords: Any) -> None:
        """Change several pruning settings at once, by the names that `from_pretrained` takes.

        Raises:
            ValueError: as [`change_pruning`] does, or if the family cannot follow the settings.
        """
        self.pruning_config = change_pruning(self.pruning_config, keywords)

    @classmethod
    def stock_model_type(cls) -> str:
        """The `model_type` of the class of transformers that this one subclasses."""
        return super().model_type  # type: ignore[misc]

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As upstream. What a checkpoint of the stock class says is the config of one of ours: every field that we add
        has a default."""
        check_loadable(pretrained_model_name_or_path, **kwargs)
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        # Otherwise upstream warns of errors that are not to be expected here.
        model_type = config_dict.get("model_type")
        if model_type == cls.stock_model_type():
            config_dict = {**config_dict, "model_type": cls.model_type}
        elif model_type not in (None, cls.model_type):
            _refuse_other_family(pretrained_model_name_or_path, model_type)
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Upstream sets keywords one by one; ours are taken together, so that contradictions are seen."""
        pruning = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("pruning_")}
        if isinstance(config_dict.get("pruning_config"), dict):  # of a file, which may be newer than this version
            config_dict = {**config_dict, "pruning_config": PruningConfig.from_dict(config_dict["pruning_config"])}
        result = super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        config = result[0] if isinstance(result, tuple) else result
        config.set_pruning(**pruning)
        return result

    @property
    def resolved_token_order(self) -> str:
        """`"raster"` or `"reference"`: the setting, or else what the family or the method says."""
        return "raster" if PruningSettings.of(self).in_raster_order else "reference"

    @property
    def resolved_position_ids(self) -> str:
        """`"original"` or `"compact"`: the setting, or else what the family or the method says."""
        return "original" if PruningSettings.of(self).keeps_positions else "compact"


def _is_setting(name: str) -> bool:
    """Whether a keyword is meant as a setting, known or not; the field `pruning_config` is none."""
    return name.startswith("pruning_") and name != "pruning_config"


def _refuse_other_family(source: Any, model_type: Any) -> None:
    """Raises ValueError: upstream only warns of another `model_type`, and weights that do not fit would be random."""
    families = classes_by_type()
    if model_type in families:
        name = families[model_type]["AutoModelForImageTextToText"].__name__
        way_out = f"load it with `{name}`, or with the class of that family for your task"
    else:
        way_out = f"there are classes for {', '.join(name for name in families if not name.endswith('_lite'))}"
    raise ValueError(f"{quoted(str(source))} is a checkpoint of another family, {model_type!r}: {way_out}.")


def _alias(field: str) -> property:
    # Only the getter: __setattr__ above handles assignment.
    return property(lambda self: getattr(self.pruning_config, field))


for _name, _field in PRUNING_ALIASES.items():
    setattr(PrunedConfigMixin, _name, _alias(_field))
