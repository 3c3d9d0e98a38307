"""Visual-token pruning for pixel-grounding vision-language models, inside the Hugging Face ecosystem.

Importing this package registers its own classes with the Auto classes and its own pipeline, and does nothing else.
"""

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.models.llava_lite import (
    LlavaLiteConfig,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    LlavaLiteModel,
    LlavaLiteProcessor,
)
from transformers_litelvlm.models.masks.box_segmentation import BoxSegmentation, BoxSegmentationOutput
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin
from transformers_litelvlm.models.outputs import PrunedGenerateBeamOutput, PrunedGenerateOutput, PrunedImageFeatures
from transformers_litelvlm.models.processing.known_pictures import DEFAULT_CHECKPOINT
from transformers_litelvlm.models.qwen2_5_vl_lite import (
    Qwen2_5_VLLite,
    Qwen2_5_VLLiteConfig,
    Qwen2_5_VLLiteForConditionalGeneration,
    Qwen2_5_VLLiteForReferringSegmentation,
    Qwen2_5_VLLiteModel,
    Qwen2_5_VLLiteProcessor,
    Qwen2_5_VLLiteVideoProcessor,
)
from transformers_litelvlm.models.qwen3_5_lite import (
    Qwen3_5Lite,
    Qwen3_5LiteConfig,
    Qwen3_5LiteForConditionalGeneration,
    Qwen3_5LiteModel,
    Qwen3_5MoeLite,
    Qwen3_5MoeLiteConfig,
    Qwen3_5MoeLiteForConditionalGeneration,
    Qwen3_5MoeLiteModel,
)
from transformers_litelvlm.models.qwen3_vl_lite import (
    Qwen3_VLLite,
    Qwen3_VLLiteConfig,
    Qwen3_VLLiteForConditionalGeneration,
    Qwen3_VLLiteModel,
    Qwen3_VLLiteProcessor,
    Qwen3_VLLiteVideoProcessor,
    Qwen3_VLMoeLite,
    Qwen3_VLMoeLiteConfig,
    Qwen3_VLMoeLiteForConditionalGeneration,
    Qwen3_VLMoeLiteModel,
)
from transformers_litelvlm.pipelines import ReferringSegmentationPipeline
from transformers_litelvlm.pruning import (
    LiteLVLMPruner,
    NoPruner,
    RandomPruner,
    Selection,
    TokenPruner,
    VisualEvidence,
    build_pruner,
    get_pruner,
    list_pruners,
    register_pruner,
    resolve_budget,
)
from transformers_litelvlm.version import __version__


__all__ = [
    "DEFAULT_CHECKPOINT",
    "AutoModelForReferringSegmentation",
    "BoxSegmentation",
    "BoxSegmentationOutput",
    "LiteLVLMPruner",
    "LlavaLiteConfig",
    "LlavaLiteForConditionalGeneration",
    "LlavaLiteForReferringSegmentation",
    "LlavaLiteModel",
    "LlavaLiteProcessor",
    "NoPruner",
    "PrunedGenerateBeamOutput",
    "PrunedGenerateOutput",
    "PrunedImageFeatures",
    "PruningConfig",
    "Qwen2_5_VLLite",
    "Qwen2_5_VLLiteConfig",
    "Qwen2_5_VLLiteForConditionalGeneration",
    "Qwen2_5_VLLiteForReferringSegmentation",
    "Qwen2_5_VLLiteModel",
    "Qwen2_5_VLLiteProcessor",
    "Qwen2_5_VLLiteVideoProcessor",
    "Qwen3_5Lite",
    "Qwen3_5LiteConfig",
    "Qwen3_5LiteForConditionalGeneration",
    "Qwen3_5LiteModel",
    "Qwen3_5MoeLite",
    "Qwen3_5MoeLiteConfig",
    "Qwen3_5MoeLiteForConditionalGeneration",
    "Qwen3_5MoeLiteModel",
    "Qwen3_VLLite",
    "Qwen3_VLLiteConfig",
    "Qwen3_VLLiteForConditionalGeneration",
    "Qwen3_VLLiteModel",
    "Qwen3_VLLiteProcessor",
    "Qwen3_VLLiteVideoProcessor",
    "Qwen3_VLMoeLite",
    "Qwen3_VLMoeLiteConfig",
    "Qwen3_VLMoeLiteForConditionalGeneration",
    "Qwen3_VLMoeLiteModel",
    "RandomPruner",
    "ReferringSegmentationMixin",
    "ReferringSegmentationOutput",
    "ReferringSegmentationPipeline",
    "Selection",
    "TokenPruner",
    "VisualEvidence",
    "__version__",
    "build_pruner",
    "get_pruner",
    "list_pruners",
    "register_pruner",
    "resolve_budget",
]
