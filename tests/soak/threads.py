"""`make test-soak`: 8 threads share one model and one processor for minutes, each call with its own settings.

Every answer must equal, bit for bit, the one computed alone. Not collected by the other targets, as it takes too long:
LITELVLM_SOAK_CALLS (default 400) calls in each of 8 threads, for both models that make masks.
"""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.support.methods import EVERY, LAYER_METHODS
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm import (
    DEFAULT_CHECKPOINT,
    AutoModelForReferringSegmentation,
    PruningConfig,
)


THREADS = 8
CALLS = int(os.environ.get("LITELVLM_SOAK_CALLS", "400"))
DIFFERENT_JOBS = 120
SENTENCES = [
    "the red triangle",
    "the dotted triangle right of the red triangle",
    "a small blue circle above everything else that is in the picture and not a square",
    "it",
]


@pytest.fixture(scope="module", params=["llava", "qwen"])
def checkpoint(request, tmp_path_factory):
    return DEFAULT_CHECKPOINT if request.param == "llava" else str(tiny_checkpoint(tmp_path_factory.mktemp("soak")))


def job(index):
    """Picture, sentences, settings and what is asked, from a number."""
    rng = random.Random(index)
    size = rng.randint(20, 300), rng.randint(20, 300)
    noise = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
    method, options = rng.choice([*EVERY, *LAYER_METHODS])
    # The tables of sparsevlm hold for two numbers of tokens.
    budget = {"budget": rng.randint(1, 16)} if method != "sparsevlm" else {"retention_ratio": 1 / 3}
    settings = {} if rng.random() < 0.1 else {**budget, "method": method, "method_options": options}
    sentences = rng.sample(SENTENCES, rng.randint(1, 3))
    return Image.fromarray(noise), sentences, settings, rng.choice(["segment", "segment", "forward", "generate"])


def test_threads_get_the_answers_of_calls_alone(checkpoint):
    torch.set_num_threads(1)  # the order of sums depends on it
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)

    @torch.no_grad()
    def answer(index):
        picture, sentences, settings, asked = job(index)
        pruning = PruningConfig(**settings)
        is_open = asked == "generate"
        inputs = processor.segmentation_inputs(
            picture, sentences[:1] if is_open else sentences, for_generation=is_open
        )
        try:
            if asked == "segment":
                return model.segment(**inputs, pruning_config=pruning).mask_logits
            if asked == "forward":
                known = {*model.model.prompt_arguments, *model.model.guidance_arguments}
                of_model = {name: value for name, value in inputs.items() if name in known}
                first = ("input_ids", "attention_mask", "guidance_input_ids", "guidance_attention_mask")
                row = {name: value[:1] if name in first else value for name, value in of_model.items()}
                return [model(**row, pruning_config=pruning).logits]
            return [model.generate(**inputs, pruning_config=pruning, max_new_tokens=6, do_sample=False)]
        except ValueError as error:  # a setting that this model refuses is refused alone and among others
            return [str(error)]

    def same(one, other):
        return len(one) == len(other) and all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
        )

    # Not every setting is defined for every model: those are errors alone, too.
    alone = {index: answer(index) for index in range(DIFFERENT_JOBS)}
    refused = {index: result[0] for index, result in alone.items() if result and isinstance(result[0], str)}
    assert len(refused) < DIFFERENT_JOBS / 2, refused

    def many(thread):
        order = random.Random(-1 - thread).choices(range(DIFFERENT_JOBS), k=CALLS)
        return [index for index in order if not same(answer(index), alone[index])]

    begin = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        different = [index for found in pool.map(many, range(THREADS)) for index in found]
    print(
        f"{THREADS * CALLS} calls, {len(refused)} of {DIFFERENT_JOBS} jobs refused, {time.monotonic() - begin:.0f} s"
    )
    assert not different, {index: job(index)[2:] for index in different}
