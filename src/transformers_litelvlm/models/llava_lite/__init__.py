"""The LLaVA family: stock LLaVA weights, and LLaVA with a [SEG] projection and a SAM decoder (LISA, GLaMM)."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import (
    LlavaLiteForConditionalGeneration,
    LlavaLiteModel,
)
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor


AutoConfig.register(LlavaLiteConfig.model_type, LlavaLiteConfig, exist_ok=True)
AutoModel.register(LlavaLiteConfig, LlavaLiteModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaLiteConfig, LlavaLiteForConditionalGeneration, exist_ok=True)
AutoModelForReferringSegmentation.register(LlavaLiteConfig, LlavaLiteForReferringSegmentation, exist_ok=True)
AutoProcessor.register(LlavaLiteConfig, LlavaLiteProcessor, exist_ok=True)

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
