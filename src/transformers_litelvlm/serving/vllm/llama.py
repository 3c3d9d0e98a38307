"""vLLM's Llama for positions with gaps."""

from __future__ import annotations

from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


# The stock class is compiled for one row of positions, this one for three.
@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "intermediate_tensors": 0, "inputs_embeds": 0}
)
class ThreeRowLlamaModel(LlamaModel):
    """[`LlamaModel`], whose positions are (3, tokens)."""

    def forward(self, input_ids, positions, intermediate_tensors, inputs_embeds=None, **kwargs):
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)


class LitelvlmLlamaForCausalLM(LlamaForCausalLM):
    """[`LlamaForCausalLM`] on it."""

    def _init_model(self, vllm_config, prefix="", layer_type=LlamaDecoderLayer):
        return ThreeRowLlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)
