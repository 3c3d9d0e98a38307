"""Visual-token pruning for pixel-grounding vision-language models, inside the Hugging Face ecosystem.

Importing this package registers its own classes with the Auto classes and its own pipeline, and does nothing else.
"""

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models import internvl_lite, llava_lite, qwen2_5_vl_lite, qwen3_5_lite, qwen3_vl_lite
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation
from transformers_litelvlm.models.internvl_lite import *  # noqa: F403 - families say themselves what is public
from transformers_litelvlm.models.llava_lite import *  # noqa: F403
from transformers_litelvlm.models.masks.box_segmentation import BoxSegmentation, BoxSegmentationOutput
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput
from transformers_litelvlm.models.masks.segmentation import ReferringSegmentationMixin
from transformers_litelvlm.models.outputs import PrunedGenerateBeamOutput, PrunedGenerateOutput, PrunedImageFeatures
from transformers_litelvlm.models.processing.known_pictures import DEFAULT_CHECKPOINT
from transformers_litelvlm.models.qwen2_5_vl_lite import *  # noqa: F403
from transformers_litelvlm.models.qwen3_5_lite import *  # noqa: F403
from transformers_litelvlm.models.qwen3_vl_lite import *  # noqa: F403
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
    "NoPruner",
    "PrunedGenerateBeamOutput",
    "PrunedGenerateOutput",
    "PrunedImageFeatures",
    "PruningConfig",
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
__all__ += internvl_lite.__all__
__all__ += llava_lite.__all__
__all__ += qwen2_5_vl_lite.__all__
__all__ += qwen3_5_lite.__all__
__all__ += qwen3_vl_lite.__all__
