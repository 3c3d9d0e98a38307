"""Every name of transformers that is not public API, and the window of releases that was tested.

The package subclasses the insides of transformers, and those change in minor releases: 5.24 renamed `past_key_values`
to `cache` and gave outputs `image_outputs`. So this is the only module that imports names which the documentation of
transformers does not list; a test looks for others. docs/versions.md says how the window is widened.
"""

import warnings

import transformers
from packaging.version import Version


# Tested: FIRST_TESTED <= transformers < FIRST_UNTESTED. setup.cfg has the same bounds.
FIRST_TESTED, FIRST_UNTESTED = "5.24", "5.25"


def warn_outside_window(version: str) -> None:
    """Warn if `version` of transformers was not tested with this package."""
    # Pre-releases and development versions belong to the release that they come before.
    if Version(FIRST_TESTED) <= Version(Version(version).base_version) < Version(FIRST_UNTESTED):
        return
    warnings.warn(
        f"transformers {version} is installed, but transformers_litelvlm was tested with transformers "
        f">={FIRST_TESTED},<{FIRST_UNTESTED} only and may fail or give wrong results: run "
        f"`pip install 'transformers>={FIRST_TESTED},<{FIRST_UNTESTED}'`, or upgrade transformers_litelvlm.",
        stacklevel=2,
    )


# Before the imports below, which may fail where names are gone.
warn_outside_window(transformers.__version__)

# ruff: noqa: E402, F401
from transformers import initialization as init
from transformers.activations import QuickGELUActivation
from transformers.cache_utils import DynamicLayer
from transformers.configuration_utils import SubConfigSpec
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.generation import BaseStreamer, GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    SizeDict,
)
from transformers.initialization import no_init_weights
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    MultimodalBaseModelOutputWithPast,
    MultimodalCausalLMOutputWithPast,
    MultimodalMoeBaseModelOutputWithPast,
    MultimodalMoeCausalLMOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, str_to_torch_dtype
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.clip.modeling_clip import eager_attention_forward as clip_eager_attention
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llama.modeling_llama import rotate_half
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm, apply_rotary_pos_emb_vision
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video
from transformers.models.sam.modeling_sam import SamMLPBlock, SamPatchEmbeddings, SamVisionSdpaAttention
from transformers.models.sam2_video.modeling_sam2_video import NO_OBJ_SCORE, Sam2VideoImageSegmentationOutput
from transformers.processing_utils import _MARKED_RE, VideosKwargs
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple
from transformers.utils.hub import extract_commit_hash, resolve_revision
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata, make_batched_metadata, make_batched_videos
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index


# Upstream's `forward` and `generate` take the old name of `cache` until 5.40, with a message; so do ours.
takes_old_cache_name = deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")


def quantization_config_of(settings: dict) -> object:
    """The quantization config that `settings` describe. Imports every quantization library that is installed."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    return AutoQuantizationConfig.from_dict(settings)
