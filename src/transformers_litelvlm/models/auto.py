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

from transformers_litelvlm.models.remote_code import REMOTE_CLASSES
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
    segmentation: type[PreTrainedModel] | None = None,
) -> None:
    """Register a family's classes with the Auto classes, and have its checkpoints name them.

    Args:
        config, processor: its configuration and processor.
        model, generation, segmentation: its base model, and the models that answer in text and in masks, if any.
    """
    AutoConfig.register(config.model_type, config, exist_ok=True)
    classes = {AutoProcessor: processor, AutoModel: model, AutoModelForImageTextToText: generation}
    if segmentation is not None:
        classes |= {AutoModelForMaskGeneration: segmentation, AutoModelForReferringSegmentation: segmentation}
    for auto_class, registered in classes.items():
        auto_class.register(config, registered, exist_ok=True)
    REMOTE_CLASSES[config.model_type] = {
        auto_class.__name__: registered for auto_class, registered in {AutoConfig: config, **classes}.items()
    }
