"""What is checked and set before vLLM builds a model: refusals, stock checkpoints, and positions with gaps."""

from __future__ import annotations

from typing import Any

import transformers
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from transformers_litelvlm.models.llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.pruned_config import PRUNING_KEYWORDS, PrunedConfigMixin
from transformers_litelvlm.models.qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen3_vl_lite import Qwen3_VLLiteConfig
from transformers_litelvlm.serving.vllm.requested import VLLM_NAMES, as_ours, is_setting
from transformers_litelvlm.serving.vllm.servable import check_settings, check_versions, installed_vllm


# Architecture of stock checkpoints -> ours, and its config.
STOCK: dict[str, tuple[str, type[PrunedConfigMixin]]] = {
    "LlavaForConditionalGeneration": ("LlavaLiteForConditionalGeneration", LlavaLiteConfig),
    "Qwen2_5_VLForConditionalGeneration": ("Qwen2_5_VLLiteForConditionalGeneration", Qwen2_5_VLLiteConfig),
    "Qwen3VLForConditionalGeneration": ("Qwen3_VLLiteForConditionalGeneration", Qwen3_VLLiteConfig),
}


class PrunedConfigCheck(VerifyAndUpdateConfig):
    """For our architectures."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Refuse what cannot be served, in one line. Raises ValueError."""
        check_versions(installed_vllm(), transformers.__version__)
        config = model_config.hf_config
        apply_vllm_names(config, model_config.hf_overrides)
        of_requests = model_config.multimodal_config.mm_processor_kwargs or {}
        if wrong := sorted(filter(is_setting, of_requests)):
            raise ValueError(f"Give `{wrong[0]}` in --hf-overrides, not in --mm-processor-kwargs.")
        settings = check_settings(config)
        if settings.is_on and settings.keeps_positions:
            use_three_rows(model_config)


class StockConfigCheck(VerifyAndUpdateConfig):
    """For stock architectures: with pruning settings in `--hf-overrides`, the model becomes one of ours."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Put our config and architecture in place of the stock ones. Raises ValueError as [`PrunedConfigCheck`]."""
        stock = model_config.hf_config
        settings = {name: getattr(stock, name) for name in PRUNING_KEYWORDS if hasattr(stock, name)}
        if not settings and not overridden(model_config.hf_overrides, *VLLM_NAMES):
            return
        architecture, config_class = STOCK[model_config.architecture]
        fields = {k: v for k, v in stock.to_dict().items() if k != "model_type" and k not in settings}
        config = config_class.from_dict({**fields, "architectures": [architecture]}, **settings)
        model_config.hf_config = config
        model_config.hf_text_config = config.get_text_config()
        model_config.model_arch_config = model_config.get_model_arch_config()
        found = model_config.registry.inspect_model_cls([architecture], model_config)
        model_config._model_info, model_config._architecture = found
        # Our processors normalise pixels; vLLM has taken the stock class's word that its tower does.
        model_config.multimodal_config.mm_device_do_normalize = False
        PrunedConfigCheck.verify_and_update_model_config(model_config)


def overridden(overrides: Any, *names: str) -> dict[str, Any]:
    """What `--hf-overrides` says of `names`. It may be a function, offline."""
    return {name: overrides[name] for name in names if name in overrides} if isinstance(overrides, dict) else {}


def apply_vllm_names(config: Any, overrides: Any) -> None:
    """Follow `image_pruning_rate` and `image_pruning_method`. Raises ValueError as [`as_ours`]."""
    if overridden(overrides, *VLLM_NAMES):
        given = overridden(overrides, *VLLM_NAMES, *PRUNING_KEYWORDS)
        given.pop("pruning_config", None)  # the config has it already, with the checkpoint's other fields
        config.set_pruning(**as_ours(given))


def use_three_rows(model_config: Any) -> None:
    """Let vLLM take positions from the embeddings, as it does for pruned videos. Raises ValueError for a language
    model that is no Llama, or whose angles vLLM computes from one row alone."""
    text = model_config.hf_text_config
    if "mrope_section" not in text.rope_parameters:  # LLaVA: three equal rows
        kinds = (text.model_type, text.rope_parameters.get("rope_type", "default"))
        if kinds != ("llama", "default"):
            raise ValueError(
                "Original positions of LLaVA can be served with a language model of type 'llama' and rope type "
                f"'default', and this one has {kinds[0]!r} and {kinds[1]!r}: set `pruning_position_ids` to 'compact'."
            )
        head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [head_size // 2, 0, 0]}
        text.architectures = ["LitelvlmLlamaForCausalLM"]
    # Of videos, which are not served: any number above 0 switches the mechanism on.
    model_config.multimodal_config.video_pruning_rate = 0.5
