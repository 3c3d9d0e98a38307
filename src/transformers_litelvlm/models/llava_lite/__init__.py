"""The LLaVA family: stock LLaVA weights, and LLaVA with a [SEG] projection and a SAM decoder (LISA, GLaMM)."""

from transformers_litelvlm.models.auto import register_family
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import (
    LlavaLiteForConditionalGeneration,
    LlavaLiteModel,
)
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor
from transformers_litelvlm.models.upstream import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)


register_family(
    LlavaLiteConfig,
    LlavaLiteProcessor,
    LlavaLiteModel,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
)

# Names of stock checkpoints are translated by class name, and ours is not upstream's.
for _ours, _upstream in (("LlavaLiteForConditionalGeneration", "llava"), ("LlavaLiteModel", "LlavaModel")):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_upstream), overwrite=True)

__all__ = [
    "LlavaLiteConfig",
    "LlavaLiteForConditionalGeneration",
    "LlavaLiteForReferringSegmentation",
    "LlavaLiteModel",
    "LlavaLiteProcessor",
]
