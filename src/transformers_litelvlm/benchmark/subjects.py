"""What is measured: a preset with random weights, or a checkpoint; each makes its model and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from transformers_litelvlm.benchmark.building import check_memory, meta_model, random_model
from transformers_litelvlm.benchmark.inputs import Workload, random_workload
from transformers_litelvlm.benchmark.presets import Preset, get_preset
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.utils.image_io import load_rgb_image


class Subject(Protocol):
    """A model to be built, and what it is asked."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def meta_model(self) -> PreTrainedModel:
        """The model without its weights: sizes before anything large is made."""
        ...

    def build(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model. Raises ValueError if its weights do not fit into memory."""
        ...

    def workload(self, config: Any, batch_size: int, sentences: int) -> Workload:
        """Its inputs. Raises ValueError if there are none of that size."""
        ...


@dataclass(frozen=True)
class PresetSubject:
    """
    A preset with random weights and inputs.

    Args:
        name (`str`): Of a preset.

    Raises:
        ValueError: There is none of that name.
    """

    name: str

    def __post_init__(self) -> None:
        get_preset(self.name)

    @property
    def preset(self) -> Preset:
        return get_preset(self.name)

    @property
    def description(self) -> str:
        return f"{self.preset.description}; random weights"

    def meta_model(self) -> PreTrainedModel:
        return meta_model(self.preset)

    def build(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        return random_model(self.preset, dtype, device)

    def workload(self, config: Any, batch_size: int, sentences: int) -> Workload:
        return random_workload(self.preset, config, batch_size, sentences)


@dataclass(frozen=True)
class CheckpointSubject:
    """
    A checkpoint of ours, or one that our classes load, with its own processor.

    Args:
        name (`str`): Folder or Hub id.
        image (`str`, *optional*): A picture; default: a generated scene.
        expressions (`Sequence[str]`): Sentences about it, as many as are asked for at most.

    Raises:
        ValueError: The checkpoint cannot be read, or is not of a family that prunes.
    """

    name: str
    image: str | None = None
    expressions: Sequence[str] = ("the red circle", "the star left of the blue square", "the largest object")

    @property
    def description(self) -> str:
        return f"{self.config.model_type} checkpoint on {self.image or 'a generated scene'}"

    @cached_property
    def config(self) -> Any:
        try:
            config = AutoConfig.from_pretrained(self.name)
        except Exception as error:  # a stranger's file
            raise ValueError(f"The checkpoint {self.name!r} cannot be read: {error}") from error
        if not hasattr(config, "pruning_config"):
            raise ValueError(
                f"The checkpoint {self.name!r} is a {config.model_type!r}, which does not prune. Convert it with "
                "`litelvlm convert` first."
            )
        return config

    @property
    def auto_class(self) -> Any:
        has_masks = self.config.mask_config is not None
        return AutoModelForReferringSegmentation if has_masks else AutoModelForImageTextToText

    def meta_model(self) -> PreTrainedModel:
        with torch.device("meta"):
            return self.auto_class.from_config(AutoConfig.from_pretrained(self.name))

    def build(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        check_memory(self.meta_model().to(dtype), device)
        return self.auto_class.from_pretrained(self.name, dtype=dtype).to(device).eval()

    def workload(self, config: Any, batch_size: int, sentences: int) -> Workload:
        if sentences > len(self.expressions):
            raise ValueError(
                f"{sentences} sentences are asked for, but only {len(self.expressions)} are given:"
                f" {list(self.expressions)}."
            )
        chosen = list(self.expressions[:sentences])
        alone = [self._inputs(batch_size, [sentence]) for sentence in chosen] if sentences > 1 else []
        return Workload(self._inputs(batch_size, chosen), alone)

    def _inputs(self, batch_size: int, sentences: list[str]) -> dict[str, Any]:
        processor, pictures = AutoProcessor.from_pretrained(self.name), [self._picture()] * batch_size
        if self.config.mask_config is not None:
            return dict(processor.segmentation_inputs(images=pictures, expressions=[sentences] * batch_size))
        content = [{"type": "image"}, {"type": "text", "text": " ".join(sentences)}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        expressions = [sentences] * batch_size
        return dict(
            processor(images=pictures, text=[prompt] * batch_size, expressions=expressions, return_tensors="pt")
        )

    def _picture(self) -> Image.Image:
        if self.image is None:
            return Image.fromarray(generate_scene("test", 0).image)
        try:
            return load_rgb_image(self.image)
        except OSError as error:
            raise ValueError(f"The picture {self.image!r} cannot be read: {error}") from error
