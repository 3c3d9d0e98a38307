"""The Auto class for models that turn sentences into masks, and the registration of a family with all of them."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.loading import AS_SAVED, given
from transformers_litelvlm.models.masks.box_segmentation import BoxSegmentation, ChatModel, chat_classes
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin
from transformers_litelvlm.models.quantization import quantized_loading
from transformers_litelvlm.models.remote_code import REMOTE_CLASSES
from transformers_litelvlm.models.upstream import (
    CONFIG_MAPPING_NAMES,
    _BaseAutoModelClass,
    _LazyAutoMapping,
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers_litelvlm.utils.hub_names import check_loadable, check_source


CPU = torch.device("cpu")


class AutoModelForReferringSegmentation(_BaseAutoModelClass):
    """Loads whichever `...ForReferringSegmentation` class a checkpoint needs, by the `model_type` of its config."""

    # Transformers has no such task: the mapping starts empty, and our models register themselves.
    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
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
        **kwargs: Any,
    ) -> ReferringSegmentationMixin:
        """The model of a checkpoint that has a mask decoder, as the `from_pretrained` of its class.

        A setting that is not given is the checkpoint's own.

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
            OSError: a path that does not exist, or a repository that cannot be reached.
            ValueError: for settings that do not exist, are out of range or contradict each other; if there is no class
                for masks for the checkpoint, or its folder holds the chat model alone.
        """
        check_loadable(pretrained_model_name_or_path, **kwargs)  # upstream reads its config first
        pruning = given(locals())
        with_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **pruning, **kwargs
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            way_out = "If it answers with boxes, load it as `BoxSegmentation`."
            raise ValueError(f"{pretrained_model_name_or_path} writes no masks. {way_out}") from error
        # A chat class that was loaded from such a checkpoint saves its config, too.
        of_masks = (name for name in info["missing_keys"] if not name.startswith(("model.", "lm_head.")))
        if missing := sorted(of_masks):
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} lack {len(missing)} parameters, the first is "
                f"{missing[0]}: masks would be random. Load the folder that has them; or, to train new ones, call "
                f"`{type(model).__name__}.from_pretrained`."
            )
        # Annotated as upstream's, which leaves the tuple out, too.
        return (model, info) if with_info else model  # type: ignore[return-value]


def load_for_segmentation(
    source: str | os.PathLike,
    config: PreTrainedConfig | None = None,
    dtype: Any = "auto",
    quantization: str = "none",
    device: torch.device = CPU,
    mask_model: str | os.PathLike | None = None,
) -> tuple[Any, Any]:
    """A model that turns sentences into masks, and its processor; nothing of them is made up.

    Args:
        source: a checkpoint folder or the name of one on the Hub.
        config: instead of the checkpoint's own.
        dtype: of the weights; by default as stored.
        quantization: of the language model's weights, see [`quantization_config`].
        device: where the model goes.
        mask_model: a stock mask model, which the boxes of a chat model prompt, see [`BoxSegmentation`]; then `source`
            may be a stock checkpoint, too.

    Raises:
        ImportError: the library of a quantization is not installed.
        ValueError: as `from_pretrained` does; also where weights are missing, left over or have other shapes, which
            upstream replaces by random numbers or reports in its log alone, and where the tokenizer is not that of
            the model.
        OSError: there is no such folder, and the Hub cannot be reached or asked for it.
    """
    check_source(source)
    config = config_for_segmentation(source, mask_model) if config is None else config
    processor = (AutoProcessor if mask_model is None else chat_classes(source)["AutoProcessor"]).from_pretrained(
        source
    )
    if mask_model is None:
        check_seg_token(source, config, processor)
    loader: Any = AutoModelForReferringSegmentation if mask_model is None else ChatModel
    computes_in = dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.float32
    model, loading = loader.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **quantized_loading(quantization, device, computes_in),
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"The weights in {source} lack {len(missing)} parameters, the first is {missing[0]}.")
    # A stock chat model may come with further heads.
    if (unknown := sorted(loading["unexpected_keys"])) and mask_model is None:
        raise ValueError(
            f"The weights in {source} have {len(unknown)} parameters too many, the first is {unknown[0]}."
        )
    for name, stored, needed in sorted(loading["mismatched_keys"]):
        raise ValueError(
            f"The weights in {source} have {name} of shape {tuple(stored)}, its config.json asks for {tuple(needed)}."
        )
    model = (model if quantization != "none" else model.to(device)).eval()
    if mask_model is None:
        return model, processor
    joined = BoxSegmentation.join(model, processor, mask_model)
    return joined, joined.processor


def config_for_segmentation(source: str | os.PathLike, mask_model: str | os.PathLike | None = None) -> Any:
    """The config of a checkpoint for [`load_for_segmentation`].

    Raises:
        ValueError: if there is no mask decoder; with `mask_model`, if it is not known how models of its kind write
            boxes.
    """
    config = (AutoConfig if mask_model is None else chat_classes(source)["AutoConfig"]).from_pretrained(source)
    if mask_model is None and getattr(config, "mask_config", None) is None:  # a stock config has no such field
        raise ValueError(
            f"{source} writes no masks: its config has no `mask_config`. If its model answers with boxes, name a mask "
            "model that they prompt (`mask_model`)."
        )
    return config


def check_seg_token(source: str | os.PathLike, config: Any, processor: Any) -> None:
    """Raises ValueError if the tokenizer of a checkpoint is not the model's."""
    token, seg_id = processor.seg_token, processor.tokenizer.convert_tokens_to_ids(processor.seg_token)
    if getattr(config, "seg_token_id", None) not in (None, seg_id):
        raise ValueError(
            f"The tokenizer of {source} reads {token} as token {seg_id}, but `seg_token_id` in its config.json is "
            f"{config.seg_token_id}: they are not of one checkpoint."
        )
    if seg_id is not None and (rows := config.get_text_config().vocab_size) <= seg_id:
        raise ValueError(
            f"The tokenizer of {source} reads {token} as token {seg_id}, but the vocabulary in its config.json ends "
            f"at {rows - 1}: they are not of one checkpoint."
        )


def register_family(
    config: type[PreTrainedConfig],
    processor: type[ProcessorMixin],
    model: type[PreTrainedModel],
    generation: type[PreTrainedModel],
    segmentation: type[PreTrainedModel] | None = None,
    renamed_as: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Register a family's classes with the Auto classes, and have its checkpoints name them.

    Args:
        config, processor: its configuration and processor.
        model, generation, segmentation: its base model, and the models that answer in text and in masks, if any.
        renamed_as: where weights of stock checkpoints are renamed or transposed: names of its classes, or its
            `model_type`, and what upstream knows these weights by. It looks for either, and ours are not its own.
    """
    AutoConfig.register(config.model_type, config, exist_ok=True)
    chat = dict.fromkeys((AutoModelForImageTextToText, AutoModelForMultimodalLM), generation)
    classes = {AutoProcessor: processor, AutoModel: model, **chat}
    if segmentation is not None:
        classes |= {AutoModelForMaskGeneration: segmentation, AutoModelForReferringSegmentation: segmentation}
    for auto_class, registered in classes.items():
        auto_class.register(config, registered, exist_ok=True)
    REMOTE_CLASSES[config.model_type] = {
        auto_class.__name__: registered for auto_class, registered in {AutoConfig: config, **classes}.items()
    }
    for ours, upstreams in renamed_as.items():
        register_checkpoint_conversion_mapping(ours, get_checkpoint_conversion_mapping(upstreams), overwrite=True)
