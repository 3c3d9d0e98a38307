"""A toy family: stock InternVL with intrinsic guidance, to see what a new family costs. Not a part of the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLModel, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast

from tests.support import tiny_llava as llava
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.devices import check_ids
from transformers_litelvlm.models.family import (
    SENTENCE_ARGUMENTS,
    PrunedHeadMixin,
    PrunedModelMixin,
    pruned_features,
    pruned_forward,
)
from transformers_litelvlm.models.guidance.encoded import EncodedMedia
from transformers_litelvlm.models.outputs import PrunedOutputMixin
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.pruned_config import PrunedConfigMixin
from transformers_litelvlm.pruning.base import VisualEvidence
from transformers_litelvlm.pruning.selection import product


class ToyConfig(PrunedConfigMixin, InternVLConfig):
    model_type = "toy_internvl_lite"
    sub_configs_defaults = {
        **InternVLConfig.sub_configs_defaults,
        "pruning_config": SubConfigSpec(config_class=PruningConfig),
    }
    pruning_config: dict | PreTrainedConfig | None = None


class TokenEvidence(VisualEvidence):
    """Visual tokens are compared with the embeddings of the words, and with one another."""

    has_class_token = False

    def __init__(self, tokens, grid, embed_tokens, sentences):
        self.features, self.grid, self.max_expressions = tokens, grid, sentences.max_expressions
        self._embed_tokens, self._sentences = embed_tokens, sentences

    def image_embeds(self):
        return self.features

    def projected_features(self):
        return self.features

    def text_embeds(self):
        ids, mask = self._sentences.input_ids, self._sentences.attention_mask
        check_ids("guidance_input_ids", ids, self._embed_tokens.num_embeddings)
        embeds = (self._embed_tokens(ids).float() * mask.unsqueeze(-1)).sum(2)
        return embeds / mask.sum(-1, keepdim=True).clamp(min=1), mask.any(-1)

    def attention_and_keys(self):
        keys = self.features.float()
        return (product(keys, keys.mT) / keys.shape[-1] ** 0.5).softmax(-1).mean(1), keys

    def context_scores(self):
        return self.attention_and_keys()[0]


class EncodedByToy(EncodedMedia):
    family = "the toy"
    has_class_token = False
    tower_features = None

    def __init__(self, model, tokens):
        self.model, self.tokens, side = model, tokens, round(tokens.shape[1] ** 0.5)
        self.grids = [(1, side, side)] * len(tokens)

    def __getitem__(self, places):
        return EncodedByToy(self.model, self.tokens[list(places)])

    def evidence(self, group, guidance):
        embed_tokens = self.model.get_input_embeddings()
        return TokenEvidence(self.tokens[group.media], group.grid, embed_tokens, guidance.rows(group.media))

    def all_tokens(self):
        return list(self.tokens)


@dataclass
class ToyOutput(PrunedOutputMixin, MultimodalBaseModelOutputWithPast):
    pass


@dataclass
class ToyCausalOutput(PrunedOutputMixin, MultimodalCausalLMOutputWithPast):
    pass


class ToyModel(PrunedModelMixin, InternVLModel):
    config_class = ToyConfig
    media_arguments: ClassVar[dict] = {
        "image": ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
    }
    output_class = ToyOutput
    takes_one_tensor = True
    forward = pruned_forward(InternVLModel, *SENTENCE_ARGUMENTS)
    get_image_features = pruned_features(InternVLModel, "image", *SENTENCE_ARGUMENTS)

    def media_grids(self, modality: str, arguments: dict[str, Any]):
        scale = self.config.downsample_ratio
        side = int(arguments["pixel_values"].shape[-1] // self.config.vision_config.patch_size[0] * scale)
        return [(1, side, side)] * len(arguments["pixel_values"])

    def encode(self, modality: str, arguments: dict[str, Any]):
        upstream = partial(InternVLModel.get_image_features, self, return_dict=True)
        return EncodedByToy(self, upstream(arguments["pixel_values"]).pooler_output)


class ToyForConditionalGeneration(PrunedGenerationMixin, PrunedHeadMixin, InternVLForConditionalGeneration):
    config_class = ToyConfig
    base_class = ToyModel
    output_class = ToyCausalOutput
    forward = pruned_forward(InternVLForConditionalGeneration, *SENTENCE_ARGUMENTS)


def tiny_config(**kwargs) -> ToyConfig:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"model_type": "qwen2", "vocab_size": 600, "hidden_size": 48, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return ToyConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 4},
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2},
        image_token_id=llava.IMAGE_TOKEN,
        image_seq_length=llava.NUM_TOKENS,
        tie_word_embeddings=False,
        **kwargs,
    )
