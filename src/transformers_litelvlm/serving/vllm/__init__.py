"""Our models in vLLM, as a plugin that vLLM finds by the entry points of this package. See docs/vllm.md."""
