"""A tiny random checkpoint with masks, saved to a folder once per session: 32 x 32 pixels, a 4 x 4 grid of tokens."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast, SamImageProcessorPil

from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import IMAGE_TOKEN, SEG_TOKEN, VOCABULARY, tiny_config
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor


WORDS = "please segment the red blue circle square star left of in this image it is user assistant : .".split()


def word_tokenizer(specials: dict[str, int], size: int, **kwargs) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with the special tokens at the ids that the tiny config has."""
    free = [index for index in range(3, size) if index not in specials.values()]
    vocabulary = {**specials, **dict(zip(WORDS, free, strict=False))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if "bos_token" in kwargs:
        bos, eos = kwargs["bos_token"], kwargs["eos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}", special_tokens=[(bos, specials[bos]), (eos, specials[eos])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **kwargs)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> str:
    """Folder of a tiny random model with its processor. Its own setting is: no pruning."""
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    torch.manual_seed(0)
    config = tiny_config(with_masks=True)
    asymmetric_(LlavaLiteForReferringSegmentation(config)).save_pretrained(folder)
    text = {"<pad>": 0, "<unk>": 2, "[SEG]": SEG_TOKEN, "<image>": IMAGE_TOKEN}
    clip = {"<unk>": 0, "<start>": 61, "<end>": 62}
    LlavaLiteProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=word_tokenizer(text, VOCABULARY, pad_token="<pad>", additional_special_tokens=["<image>", "[SEG]"]),
        patch_size=8,
        guidance_tokenizer=word_tokenizer(
            clip, 60, bos_token="<start>", eos_token="<end>", pad_token="<end>", model_max_length=20
        ),
        mask_image_processor=SamImageProcessorPil(size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}),
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def picture(tmp_path) -> str:
    """A wide picture: the vision tower never sees its left and right end."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    return str(path)
