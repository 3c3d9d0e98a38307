"""The two tokenizers, learned from RefShapes sentences: a CLIP tokenizer for the guidance and a byte-level one for the
language model.
"""

from __future__ import annotations

import functools
import json
from itertools import product

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from transformers_litelvlm.data.refshapes_queries import RELATIONS, SUPERLATIVES
from transformers_litelvlm.data.refshapes_rendering import COLOURS, SHAPES, TEXTURES


QUESTION = "Please segment {} in this image."
FIRST_TURN = "USER: <image>\nPlease segment {} in this image. ASSISTANT: It is [SEG].</s>"
NEXT_TURN = "USER: Please segment {} in this image. ASSISTANT: It is [SEG].</s>"
# Words that people are likely to use although no training sentence has them; they only make the token sequences of
# such prompts shorter.
OTHER_WORDS = (
    "a an and or of on at to what where which who is are can you show me find it object shape picture image photo "
    "with next near between biggest"
)


def corpus() -> list[str]:
    """Every word of the sentences and prompts, in its context of neighbouring spaces."""
    lines = [
        QUESTION.format(f"the second {superlative} {size} {texture} {colour} {shape} {relation} the {colour} {shape}")
        for superlative, size, texture, colour, shape, relation in product(
            SUPERLATIVES, ("small", "large"), TEXTURES, COLOURS, SHAPES, RELATIONS
        )
    ]
    phrases = [line[len("Please segment ") : -len(" in this image.")] for line in lines]
    turns = [template.format(phrase) for template in (FIRST_TURN, NEXT_TURN) for phrase in phrases]
    plain = [turn.replace("<image>", "").replace("[SEG]", "").replace("</s>", "") for turn in turns]
    return lines + plain + [OTHER_WORDS, f" {OTHER_WORDS}"] * 10


@functools.cache  # learned in seconds, and asked for by every part of a stage
def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer (lower case, byte-level, `</w>` ends a word) in which every word of RefShapes is one token."""
    bare = CLIPTokenizer()
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = bare.backend_tokenizer.normalizer
    learner.pre_tokenizer = bare.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        corpus(),
        BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    # The layout of OpenAI's vocabulary: bytes, bytes that end a word, merges, then the two special tokens.
    entries = alphabet + [f"{byte}</w>" for byte in alphabet] + ["".join(pair) for pair in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@functools.cache
def language_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in the manner of Llama's: `<s>` is put in front, `[SEG]` and `<image>` are tokens of
    their own.
    """
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>", "[SEG]"]
    learner.train_from_iterator(
        corpus(),
        BpeTrainer(
            vocab_size=2000,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    learner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", learner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "seg_token": "[SEG]"},
        model_max_length=2048,
    )
