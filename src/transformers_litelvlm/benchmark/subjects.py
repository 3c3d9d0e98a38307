"""What is measured: a preset with random weights, or a checkpoint; each makes its model and its inputs.

Random weights are made on the device in the wanted dtype; whether a model fits is said before it is built.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, PreTrainedModel

from transformers_litelvlm.benchmark.inputs import PromptLengths, Workload, random_workload
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.models.quantization import weight_bytes
from transformers_litelvlm.models.upstream import no_init_weights
from transformers_litelvlm.utils.hub_names import check_source
from transformers_litelvlm.utils.image_io import load_rgb_image


STD = 0.02  # as Llama and CLIP are initialised; keeps activations finite in half precision


@dataclass(frozen=True)
class Preset:
    """
    A model by name, with random weights and inputs.

    Args:
        name (`str`): What it is called.
        description (`str`): One line.
        build_config (`Callable`): Makes its configuration.
        prompt (`PromptLengths`): What it is asked.
        grid (`tuple[int, int]`, *optional*): Rows and columns of visual tokens, if the picture decides.
    """

    name: str
    description: str
    build_config: Callable[[], PreTrainedConfig]
    prompt: PromptLengths
    grid: tuple[int, int] | None = None

    @property
    def summary(self) -> str:
        return f"{self.description}; random weights"

    def meta_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model without memory for its weights: sizes before anything large is made."""
        return _meta_model(self.build_config(), dtype)

    def build(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
        """The model with the same random weights for the same seed, dtype and device. Raises ValueError if the weights
        alone need more memory than the device has left."""
        check_memory(self.meta_model(dtype), device)
        # Buffers are made by the constructors, one of them at random.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with torch.device(device), no_init_weights():
                model = _from_config(self.build_config(), dtype)
        model.tie_weights()
        fill_(model, seed)
        return model.eval()

    def workload(self, config: Any, batch_size: int, sentences: int) -> Workload:
        """Inputs of a model with `config`, the same every time."""
        return random_workload(self.prompt, self.grid, config, batch_size, sentences)


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
    def summary(self) -> str:
        return f"{self.config.model_type} checkpoint on {self.image or 'a generated scene'}"

    @cached_property
    def config(self) -> Any:
        try:
            check_source(self.name)
            config = AutoConfig.from_pretrained(self.name)
        except Exception as error:  # a stranger's file
            raise ValueError(f"The checkpoint {self.name!r} cannot be read: {error}") from error
        if not hasattr(config, "pruning_config"):
            raise ValueError(
                f"The checkpoint {self.name!r} is a {config.model_type!r}, which does not prune. If there is a class "
                "for it (README, 'Your own model'), load it with that, and give the folder that its `save_pretrained` "
                "writes; or convert it with `litelvlm convert`."
            )
        return config

    def meta_model(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model without memory for its weights."""
        return _meta_model(copy.deepcopy(self.config), dtype)

    def build(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model. Raises ValueError if its weights do not fit into memory."""
        check_memory(self.meta_model(dtype), device)
        return _auto_class(self.config).from_pretrained(self.name, dtype=dtype).to(device).eval()

    def workload(self, config: Any, batch_size: int, sentences: int) -> Workload:
        """Its inputs. Raises ValueError if there are not so many sentences."""
        if sentences > len(self.expressions):
            raise ValueError(
                f"{sentences} sentences are asked for, but only {len(self.expressions)} are given:"
                f" {list(self.expressions)}."
            )
        chosen = list(self.expressions[:sentences])
        alone = [self._inputs(batch_size, [sentence]) for sentence in chosen] if sentences > 1 else []
        return Workload(self._inputs(batch_size, chosen), alone)

    def _inputs(self, batch_size: int, sentences: list[str]) -> dict[str, Any]:
        scene = generate_scene("test", 0).image if self.image is None else self.image
        processor, pictures = AutoProcessor.from_pretrained(self.name), [load_rgb_image(scene)] * batch_size
        if self.config.mask_config is not None:
            return dict(processor.segmentation_inputs(images=pictures, expressions=[sentences] * batch_size))
        content = [{"type": "image"}, {"type": "text", "text": " ".join(sentences)}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        expressions = [sentences] * batch_size
        return dict(
            processor(images=pictures, text=[prompt] * batch_size, expressions=expressions, return_tensors="pt")
        )


Subject = Preset | CheckpointSubject


def _auto_class(config: Any) -> Any:
    return AutoModelForImageTextToText if config.mask_config is None else AutoModelForReferringSegmentation


def _from_config(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    return _auto_class(config).from_config(config, dtype=dtype)


def _meta_model(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    with torch.device("meta"):
        return _from_config(config, dtype)


def stock_of(model: PreTrainedModel) -> PreTrainedModel:
    """The class of Transformers that a model of ours extends, with the same weights: they are shared, not copied."""
    stock_class = next(each for each in type(model).__mro__ if each.__module__.startswith("transformers."))
    with torch.device("meta"):
        stock = stock_class(copy.deepcopy(model.config))
    for name, part in (*model.named_parameters(), *model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        with suppress(AttributeError):  # of parts that only ours has
            setattr(stock.get_submodule(owner), leaf, part)
    stock.generation_config = copy.deepcopy(model.generation_config)
    return stock.eval()


def check_memory(model: PreTrainedModel, device: torch.device) -> None:
    """Raises ValueError if the weights of a model need more memory than a device has left."""
    needed, free = weight_bytes(model), free_memory(device)
    if needed > free:
        raise ValueError(
            f"The weights need {needed / 1e9:.1f} GB in {str(model.dtype).removeprefix('torch.')}, but {device} has "
            f"{free / 1e9:.1f} GB left. Choose a smaller model, a dtype of two bytes, or another device."
        )


@torch.no_grad()
def fill_(model: torch.nn.Module, seed: int) -> None:
    """Random values for every parameter, in place; scales of norms are around 1."""
    generator: Any = None
    for parameter in model.parameters():
        if generator is None or generator.device != parameter.device:
            generator = torch.Generator(parameter.device).manual_seed(seed)
        parameter.normal_(0.0, STD, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1.0)


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return math.inf
    import psutil

    return psutil.virtual_memory().available
