"""Where the parts of a checkpoint come from, and what `from_pretrained` of a model adds to upstream's."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers_litelvlm.models.quantization import keep_unquantized
from transformers_litelvlm.models.upstream import resolve_revision
from transformers_litelvlm.utils.hub_names import check_no_missing_path


# What says where a file comes from: of any repository, and within this one.
_ACCESS = ("cache_dir", "force_download", "local_files_only", "token")
_PLACE = ("revision", "subfolder")


def hub_arguments(source: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say where the files of `source` come from; the revision as a commit,
    so that all parts come from one. Raises FileNotFoundError if `source` is a path that does not exist."""
    check_no_missing_path(source)
    arguments = {name: kwargs[name] for name in (*_ACCESS, *_PLACE) if name in kwargs}
    access = {name: arguments[name] for name in ("cache_dir", "local_files_only", "token") if name in arguments}
    return {**arguments, "revision": resolve_revision(source, arguments.get("revision"), **access)}


def access_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that hold for other repositories, too."""
    return {name: kwargs[name] for name in _ACCESS if name in kwargs}


class GuidedLoadingMixin:
    """For the model classes: a checkpoint without guidance gets it from `config.guidance_model`, if it needs one.

    Their base model has `load_missing_guidance(**access)`, which does so.

    Attributes:
        unquantized_parts: names of modules that a `quantization_config` leaves as they are.
    """

    unquantized_parts: ClassVar[tuple[str, ...]]
    base_model: Any

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any):
        """As upstream. `cache_dir`, `force_download`, `local_files_only` and `token` hold for the guidance, too.

        Raises:
            ValueError: if guidance is missing, and the CLIP that the config names cannot be loaded or does not fit.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = keep_unquantized(kwargs["quantization_config"], cls.unquantized_parts)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        model.base_model.load_missing_guidance(**access_arguments(kwargs))
        return (model, info) if output_loading_info else model
