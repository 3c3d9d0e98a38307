"""The LLaVA family: stock LLaVA weights, and LLaVA with a [SEG] projection and a SAM decoder (LISA, GLaMM)."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
)
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
from transformers_litelvlm.models.remote_code import register_remote_class


AutoConfig.register(LlavaLiteConfig.model_type, LlavaLiteConfig, exist_ok=True)
AutoProcessor.register(LlavaLiteConfig, LlavaLiteProcessor, exist_ok=True)
for _auto_class, _model_class in (
    (AutoModel, LlavaLiteModel),
    (AutoModelForImageTextToText, LlavaLiteForConditionalGeneration),
    (AutoModelForMaskGeneration, LlavaLiteForReferringSegmentation),
):
    _auto_class.register(LlavaLiteConfig, _model_class, exist_ok=True)
    # The same where only a checkpoint's own code is at hand.
    _model_class.register_for_auto_class(_auto_class)
AutoModelForReferringSegmentation.register(LlavaLiteConfig, LlavaLiteForReferringSegmentation, exist_ok=True)
register_remote_class(LlavaLiteConfig.model_type, "AutoConfig", LlavaLiteConfig)
register_remote_class(LlavaLiteConfig.model_type, "AutoProcessor", LlavaLiteProcessor)

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
