"""The Qwen2.5-VL family: stock weights, images and videos."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLite,
    Qwen2_5_VLLiteForConditionalGeneration,
    Qwen2_5_VLLiteModel,
)
from transformers_litelvlm.models.qwen2_5_vl_lite.processing_qwen2_5_vl_lite import Qwen2_5_VLLiteProcessor
from transformers_litelvlm.models.qwen2_5_vl_lite.video_processing_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteVideoProcessor,
)
from transformers_litelvlm.models.remote_code import register_remote_class


AutoConfig.register(Qwen2_5_VLLiteConfig.model_type, Qwen2_5_VLLiteConfig, exist_ok=True)
AutoProcessor.register(Qwen2_5_VLLiteConfig, Qwen2_5_VLLiteProcessor, exist_ok=True)
for _auto_class, _model_class in (
    (AutoModel, Qwen2_5_VLLiteModel),
    (AutoModelForImageTextToText, Qwen2_5_VLLiteForConditionalGeneration),
):
    _auto_class.register(Qwen2_5_VLLiteConfig, _model_class, exist_ok=True)
    # The same where only a checkpoint's own code is at hand.
    _model_class.register_for_auto_class(_auto_class)
register_remote_class(Qwen2_5_VLLiteConfig.model_type, "AutoConfig", Qwen2_5_VLLiteConfig)
register_remote_class(Qwen2_5_VLLiteConfig.model_type, "AutoProcessor", Qwen2_5_VLLiteProcessor)

# Names of stock checkpoints are translated by class name, and ours is not upstream's. The base model gets the same
# translation, which knows the names of old and new checkpoints; upstream's own for it takes both for new ones.
for _name in ("Qwen2_5_VLLiteForConditionalGeneration", "Qwen2_5_VLLiteModel"):
    _mapping = get_checkpoint_conversion_mapping("Qwen2_5_VLForConditionalGeneration")
    register_checkpoint_conversion_mapping(_name, _mapping, overwrite=True)

__all__ = [
    "Qwen2_5_VLLite",
    "Qwen2_5_VLLiteConfig",
    "Qwen2_5_VLLiteForConditionalGeneration",
    "Qwen2_5_VLLiteModel",
    "Qwen2_5_VLLiteProcessor",
    "Qwen2_5_VLLiteVideoProcessor",
]
