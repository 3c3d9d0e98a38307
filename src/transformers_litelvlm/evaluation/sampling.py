"""Which sentences of an image a protocol asks about, and how."""

from __future__ import annotations

import numpy as np

from transformers_litelvlm.data.samples import ReferringSentence


GLAMM_SENTENCES = 3


def choose_sentences(
    sentences: tuple[ReferringSentence, ...], protocol: str, templates: list[str], seed: int | None, index: int
) -> tuple[list[ReferringSentence], list[str] | None]:
    """The sentences that are asked about an image, and the question for each.

    Under `"glamm"` they are at most three, drawn without replacement, with questions drawn with replacement: the
    random stream belongs to (seed, number of the image), so neither processes nor batches nor other images matter.

    Args:
        sentences: all sentences of the image.
        protocol: `"all"` or `"glamm"`.
        templates: the checkpoint's questions.
        seed: of the run; only `"glamm"` needs it.
        index: number of the image in its split.

    Returns:
        Sentences, and templates or `None` for the default one.
    """
    if protocol == "all":
        return list(sentences), None
    rng = np.random.default_rng([seed, index])
    places = rng.choice(len(sentences), size=min(GLAMM_SENTENCES, len(sentences)), replace=False)
    drawn = rng.integers(len(templates), size=len(places))
    return [sentences[place] for place in places], [templates[number] for number in drawn]
