"""What the processors of all model families share: backends, pictures and the tokenizer for guidance."""

from __future__ import annotations

import copy
import os
from typing import Any

import transformers
from transformers import AutoTokenizer
from transformers.utils import logging

from transformers_litelvlm.models.remote_code import REMOTE_CLASSES, InstalledCodeMixin, write_stub
from transformers_litelvlm.utils.image_io import load_rgb_image


logger = logging.get_logger(__name__)


class GuidedProcessorMixin(InstalledCodeMixin):
    """For a processor with a `guidance_tokenizer` (or `None`), in front of upstream's class: loading and saving."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Upstream loads these two; the optional parts are ours to load."""
        return ["image_processor", "tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns: upstream's, and what guides pruning."""
        return [*super().model_input_names, *self.further_input_names]

    @property
    def further_input_names(self) -> list[str]:
        """Those that upstream does not know, or that no part in `get_attributes` says."""
        return [] if self.guidance_tokenizer is None else ["guidance_input_ids", "guidance_attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        shallow = copy.copy(self)
        del shallow.guidance_tokenizer  # saved in files of its own
        return super(GuidedProcessorMixin, shallow).to_dict()

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs: Any):
        """As upstream; the guidance tokenizer goes to the sub-folder `guidance_tokenizer`."""
        families = REMOTE_CLASSES.items()
        model_type = next((name for name, of in families if isinstance(self, of["AutoProcessor"])), None)
        if model_type is not None:
            self.auto_map = {"AutoProcessor": write_stub(save_directory, model_type)["AutoProcessor"]}
        if self.guidance_tokenizer is not None:
            self.guidance_tokenizer.save_pretrained(os.path.join(save_directory, "guidance_tokenizer"))
        files = super().save_pretrained(save_directory, **kwargs)
        # For the file alone: a processor that was loaded from it has none either.
        self.__dict__.pop("auto_map", None)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.fspath(save_directory))), **kwargs)
        return files


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say where a file comes from."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}


def load_guidance_tokenizer(source, kwargs: dict[str, Any]):
    """The tokenizer in the sub-folder of a checkpoint, `None` if there is none (stock LLaVA)."""
    arguments = hub_arguments(kwargs)
    arguments["subfolder"] = os.path.join(arguments.get("subfolder", ""), "guidance_tokenizer")
    try:
        return AutoTokenizer.from_pretrained(source, **arguments)
    except (OSError, ValueError) as error:
        logger.warning(
            f"{source} has no guidance tokenizer, so prompts get no `guidance_input_ids` and methods that read the "
            f"sentence cannot run. Pass `guidance_tokenizer=` to `from_pretrained`. ({type(error).__name__})"
        )
        return None


def on_pil(processor):
    """The same image processor on its PIL backend, if it has one."""
    name = type(processor).__name__
    twin = None if name.endswith("Pil") else getattr(transformers, f"{name}Pil", None)
    return processor if processor is None or twin is None else twin(**processor.to_dict())


def read_images(images):
    """Paths and PIL pictures, however nested, as upright RGB; anything else is left to upstream."""
    if isinstance(images, list | tuple):
        return [read_images(image) for image in images]
    is_picture = isinstance(images, str | os.PathLike) or hasattr(images, "getexif")
    return load_rgb_image(images) if is_picture else images
