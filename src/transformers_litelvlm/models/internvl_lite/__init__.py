"""The InternVL family: stock weights, and InternVL with a [SEG] head and SAM 2 (Sa2VA)."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.internvl_lite.configuration_internvl_lite import InternVLLiteConfig
from transformers_litelvlm.models.internvl_lite.modeling_internvl_lite import (
    InternVLLiteForConditionalGeneration,
    InternVLLiteModel,
)
from transformers_litelvlm.models.internvl_lite.modeling_internvl_lite_segmentation import (
    InternVLLiteForReferringSegmentation,
)
from transformers_litelvlm.models.internvl_lite.processing_internvl_lite import InternVLLiteProcessor
from transformers_litelvlm.models.upstream import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)


register_family(
    InternVLLiteConfig,
    InternVLLiteProcessor,
    InternVLLiteModel,
    InternVLLiteForConditionalGeneration,
    InternVLLiteForReferringSegmentation,
)

# Names of stock checkpoints are translated by class name, and ours is not upstream's.
for _ours, _upstream in (
    ("InternVLLiteForConditionalGeneration", "internvl"),
    ("InternVLLiteModel", "InternVLModel"),
):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_upstream), overwrite=True)

__all__ = [
    "InternVLLiteConfig",
    "InternVLLiteForConditionalGeneration",
    "InternVLLiteForReferringSegmentation",
    "InternVLLiteModel",
    "InternVLLiteProcessor",
]
