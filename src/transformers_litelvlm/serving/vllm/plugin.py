"""What the entry points name. vLLM calls it in every process, also when it serves somebody else's model."""

from __future__ import annotations


PACKAGE = "transformers_litelvlm.serving.vllm"
# Name of an architecture in a config.json -> where vLLM finds its class.
ARCHITECTURES = {
    "LlavaLiteForConditionalGeneration": f"{PACKAGE}.llava:LlavaLite",
    "LlavaLiteForReferringSegmentation": f"{PACKAGE}.llava_masks:LlavaLiteWithMasks",
    "Qwen2_5_VLLiteForConditionalGeneration": f"{PACKAGE}.qwen:PrunedQwen25",
    "Qwen3_VLLiteForConditionalGeneration": f"{PACKAGE}.qwen:PrunedQwen3",
}
# A language model alone, which only the classes above ask for.
LANGUAGE_MODELS = {"LitelvlmLlamaForCausalLM": f"{PACKAGE}.llama:LitelvlmLlamaForCausalLM"}


def register() -> None:
    """Tell vLLM about our architectures, and what to check of a config before a model is built.

    Raises nothing of its own: what is wrong with a version or a setting is said when one of our models is to be
    served.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import transformers_litelvlm  # noqa: F401  registers our configs and processors with the Auto classes
    from transformers_litelvlm.serving.vllm.startup import STOCK, PrunedConfigCheck, StockConfigCheck

    for name, place in (ARCHITECTURES | LANGUAGE_MODELS).items():
        ModelRegistry.register_model(name, place)
    for name in ARCHITECTURES:
        MODELS_CONFIG_MAP[name] = PrunedConfigCheck
    for name in STOCK:
        # A stock config without `pruning_config` goes through unchanged.
        MODELS_CONFIG_MAP.setdefault(name, StockConfigCheck)


def segmentation_io() -> str:
    """Name of the class that turns a request for masks into a prompt, and what comes out into masks."""
    return f"{PACKAGE}.segmentation.SegmentationIOProcessor"
