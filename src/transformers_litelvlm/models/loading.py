"""Where the parts of a checkpoint come from, and what `from_pretrained` of a model adds to upstream's."""

from __future__ import annotations

import copy
import os
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.quantization import keep_unquantized
from transformers_litelvlm.models.remote_code import RemoteCodeMixin
from transformers_litelvlm.models.upstream import resolve_revision
from transformers_litelvlm.utils.hub_names import check_loadable


# What says where a file comes from: of any repository, and within this one.
_ACCESS = ("cache_dir", "force_download", "local_files_only", "token")
_PLACE = ("revision", "subfolder")


class _AsSaved:
    def __repr__(self) -> str:
        return "as saved"


# For a setting that is not given: that of the checkpoint holds. `None` is a setting.
AS_SAVED: Any = _AsSaved()


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments of a function, its `locals()`, the pruning settings that are not [`AS_SAVED`]."""
    return {name: own for name, own in arguments.items() if name.startswith("pruning_") and own is not AS_SAVED}


def hub_arguments(source: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say where the files of `source` come from; the revision as a commit,
    so that all parts come from one. Raises OSError if `source` is not there, see [`check_loadable`]."""
    check_loadable(source, **kwargs)
    arguments = {name: kwargs[name] for name in (*_ACCESS, *_PLACE) if name in kwargs}
    access = {name: arguments[name] for name in ("cache_dir", "local_files_only", "token") if name in arguments}
    return {**arguments, "revision": resolve_revision(source, arguments.get("revision"), **access)}


def access_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that hold for other repositories, too."""
    return {name: kwargs[name] for name in _ACCESS if name in kwargs}


class GuidedLoadingMixin(RemoteCodeMixin):
    """For the model classes: `from_pretrained` takes pruning settings, and a checkpoint without guidance gets it from
    `config.guidance_model`, if it needs one.

    Their base model has `load_missing_guidance(**access)`, which does so.

    Attributes:
        unquantized_parts: names of modules that a `quantization_config` leaves as they are; of base models, and of
            those with a `base_class` for both.
    """

    unquantized_parts: ClassVar[tuple[str, ...]]
    base_model: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        pruning_config: PruningConfig | dict[str, Any] | None = AS_SAVED,
        pruning_preset: str | None = AS_SAVED,
        pruning_method: str = AS_SAVED,
        pruning_budget: int | None = AS_SAVED,
        pruning_retention_ratio: float | None = AS_SAVED,
        pruning_method_options: dict[str, Any] | None = AS_SAVED,
        pruning_then: dict[str, Any] | None = AS_SAVED,
        pruning_token_order: str | None = AS_SAVED,
        pruning_position_ids: str | None = AS_SAVED,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """As upstream, also for a checkpoint of the stock class, and with pruning settings.

        A setting that is not given is the checkpoint's own, which is no pruning in one of the stock class.
        `cache_dir`, `force_download`, `local_files_only` and `token` hold for the guidance, too.

        Args:
            pretrained_model_name_or_path: a folder or the name of a repository on the Hub.
            pruning_config: all settings at once; of a dict, the fields that it has. Those below change it.
            pruning_preset: name of a saved setting, such as `"balanced"`, see [`PruningConfig`].
            pruning_method: name of a method, see [`list_pruners`].
            pruning_budget: visual tokens kept of each image or video; `None` switches pruning off.
            pruning_retention_ratio: fraction of the visual tokens KEPT, in (0, 1], instead of a budget.
            pruning_method_options, pruning_then, pruning_token_order, pruning_position_ids: as `method_options`,
                `then`, `token_order` and `position_ids` of [`PruningConfig`].
            kwargs: of upstream's `from_pretrained`, fields of the config among them.

        Raises:
            ValueError: for settings that do not exist, are out of range or contradict each other; if guidance is
                missing, and the CLIP that the config names cannot be loaded or does not fit.
        """
        pruning = given(locals())
        if pruning and isinstance(kwargs.get("config"), PreTrainedConfig):
            kwargs["config"] = copy.deepcopy(kwargs["config"])
            kwargs["config"].set_pruning(**pruning)
        else:
            kwargs |= pruning
        if kwargs.get("quantization_config") is not None:
            parts = getattr(cls, "base_class", cls).unquantized_parts
            kwargs["quantization_config"] = keep_unquantized(kwargs["quantization_config"], parts)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model.base_model.load_missing_guidance(**access_arguments(kwargs))
        # Annotated as upstream's, which leaves the tuple out, too.
        return (model, info) if output_loading_info else model  # type: ignore[return-value]
