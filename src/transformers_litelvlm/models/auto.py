"""The Auto class for models that turn sentences into masks, and the registration of a family with all of them."""

from __future__ import annotations

from collections import OrderedDict

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from transformers_litelvlm.models.remote_code import register_remote_class
from transformers_litelvlm.models.upstream import CONFIG_MAPPING_NAMES, _BaseAutoModelClass, _LazyAutoMapping


class AutoModelForReferringSegmentation(_BaseAutoModelClass):
    """Loads whichever `...ForReferringSegmentation` class a checkpoint needs, by the `model_type` of its config."""

    # Transformers has no such task: the mapping starts empty, and our models register themselves.
    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


def register_family(
    config: type[PreTrainedConfig],
    processor: type[ProcessorMixin],
    model: type[PreTrainedModel],
    generation: type[PreTrainedModel],
    segmentation: type[PreTrainedModel],
) -> None:
    """Register a family's classes with the Auto classes, here and where only a checkpoint's own code is at hand.

    Args:
        config, processor: its configuration and processor.
        model, generation, segmentation: its base model, and the models that answer in text and in masks.
    """
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoProcessor.register(config, processor, exist_ok=True)
    for auto_class, model_class in (
        (AutoModel, model),
        (AutoModelForImageTextToText, generation),
        (AutoModelForMaskGeneration, segmentation),
    ):
        auto_class.register(config, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class)
    AutoModelForReferringSegmentation.register(config, segmentation, exist_ok=True)
    register_remote_class(config.model_type, "AutoConfig", config)
    register_remote_class(config.model_type, "AutoProcessor", processor)
