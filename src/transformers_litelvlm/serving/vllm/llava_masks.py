"""LLaVA with masks: a pooling model whose answer to a dialogue with [SEG] are masks."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.pooler import DispatchPooler, Pooler, PoolingParamsUpdate
from vllm.model_executor.layers.pooler.tokwise import AllPool, pooler_for_token_embed
from vllm.model_executor.models.interfaces_base import VllmModelForPooling
from vllm.multimodal import MULTIMODAL_REGISTRY

from transformers_litelvlm.models.llava_lite import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.masks.segmentation import DialogueStates
from transformers_litelvlm.serving.cache import EncodingCache
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.vllm.llava import LlavaLite, LlavaLiteInfo, LlavaLiteInputs
from transformers_litelvlm.serving.vllm.mask_bytes import SIZES, pack_masks, unpack_pixels
from transformers_litelvlm.serving.vllm.processing import PictureDummyInputs


class MaskPooler(Pooler):
    """Masks of every [SEG] of a prompt, from the states of the whole prompt, which may come in chunks; `media` is the
    model without its language model."""

    def __init__(self, media: Any) -> None:
        super().__init__()
        self._media = [media]  # in a list: it is no part of the pooler
        self.gather = AllPool()
        self.known = EncodingCache(Limits.cache_mb * 2**20)

    def get_supported_tasks(self) -> set[str]:
        return {"plugin"}

    def get_pooling_updates(self, task: str) -> PoolingParamsUpdate:
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor | None]:
        states = self.gather(hidden_states, pooling_metadata)
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        return [
            None if of_prompt is None else self.decode(of_prompt, ids, params.extra_kwargs)
            for of_prompt, ids, params in zip(states, prompts, pooling_metadata.pooling_params, strict=True)
        ]

    def decode(self, states: torch.Tensor, ids: torch.Tensor, picture: dict[str, Any] | None) -> torch.Tensor:
        """Masks, as bytes, of one prompt.

        Args:
            states: (L, D).
            ids: (L,).
            picture: of [`pack_picture`]; `None` when vLLM measures memory.
        """
        if picture is None:
            return torch.zeros(1, dtype=torch.uint8)
        [media] = self._media
        features = self.known.get(picture["key"], lambda: media.mask_decoder.encode(unpack_pixels(picture)))
        inputs = {name: torch.tensor(picture[name]) for name in SIZES}
        read = DialogueStates(states.unsqueeze(0), ids[: len(states)].to(states.device).unsqueeze(0))
        output = media.decode(read, inputs, mask_features=features).require_finite()
        return pack_masks(output.masks[0], output.scores[0])


@MULTIMODAL_REGISTRY.register_processor(LlavaLiteInputs, info=LlavaLiteInfo, dummy_inputs=PictureDummyInputs)
class LlavaLiteWithMasks(LlavaLite, VllmModelForPooling):
    """`--runner pooling` gives masks, `--runner generate` text."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        pooler_config = vllm_config.model_config.pooler_config
        if pooler_config is not None:
            self.model_class, self.left_aside = LlavaLiteForReferringSegmentation, ()  # of this object alone
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = None
        self.is_pooling_model = pooler_config is not None  # of the class, it says what the model can do
        if self.is_pooling_model:
            poolers = {"plugin": MaskPooler(self.media), "token_embed": pooler_for_token_embed(pooler_config)}
            self.pooler = DispatchPooler(poolers)
