"""What the processors of all model families share: backends, pictures and the tokenizer for guidance."""

from __future__ import annotations

import os
from typing import Any

import transformers
from transformers import AutoTokenizer
from transformers.utils import logging

from transformers_litelvlm.models.image_io import load_rgb_image


logger = logging.get_logger(__name__)


def load_guidance_tokenizer(source, kwargs: dict[str, Any]):
    """The tokenizer in the sub-folder of a checkpoint, `None` where there is none (stock LLaVA)."""
    hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    arguments = {name: kwargs[name] for name in hub if name in kwargs}
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
    """The same image processor on its PIL backend, where it has one."""
    name = type(processor).__name__
    twin = None if name.endswith("Pil") else getattr(transformers, f"{name}Pil", None)
    return processor if processor is None or twin is None else twin(**processor.to_dict())


def read_images(images):
    """Paths and PIL pictures, however nested, as upright RGB; anything else is left to upstream."""
    if isinstance(images, list | tuple):
        return [read_images(image) for image in images]
    is_picture = isinstance(images, str | os.PathLike) or hasattr(images, "getexif")
    return load_rgb_image(images) if is_picture else images
