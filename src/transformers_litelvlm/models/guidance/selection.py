"""From encoded images and videos to the visual tokens that are kept: method, order, gather or merge, project."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch

from transformers_litelvlm.models.guidance.encoded import NO_SENTENCES, EncodedMedia, Guidance
from transformers_litelvlm.models.guidance.frames import FrameGroup, group_frames
from transformers_litelvlm.models.outputs import MediaFeatures, NotFiniteError, PrunedImageFeatures
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning.base import Selection, VisualEvidence
from transformers_litelvlm.pruning.registry import get_pruner, list_pruners
from transformers_litelvlm.pruning.selection import gather_tokens, merge_tokens, one_hot


class Chosen(NamedTuple):
    """What a method chose from the frames of a group: one selection for all, or one for each frame."""

    group: FrameGroup
    evidence: VisualEvidence
    parts: list[Selection]


def select(encoded: EncodedMedia, guidance: Guidance, settings: PruningSettings) -> MediaFeatures:
    """The visual tokens that the language model gets of M images or videos.

    Returns:
        [`PrunedImageFeatures`]; a plain output with all tokens if nothing is cut before the language model.

    Raises:
        ValueError: as [`choose`].
    """
    if settings.before_language_model is None or not settings.cuts(encoded.sizes):
        return MediaFeatures(pooler_output=encoded.all_tokens(), deepstack_features=encoded.deepstack or None)
    return project(encoded, choose(encoded, guidance, settings), settings)


def choose(encoded: EncodedMedia, guidance: Guidance, settings: PruningSettings) -> list[Chosen]:
    """Which tokens a method keeps, group by group.

    Raises:
        ValueError: if the method needs sentences and there are none, is not defined for the tower, or cannot keep
            exactly as many tokens as the budget says; on a CPU also if what it chose is not usable.
    """
    _check(encoded, guidance, settings)
    chosen, pruner = [], settings.before_language_model
    if not pruner.needs_text:
        guidance = NO_SENTENCES
    for group in group_frames(encoded.grids, settings.budgets(encoded.sizes)):
        evidence = encoded.evidence(group, guidance)
        num_frames, num_tokens = len(group.frames), group.grid[0] * group.grid[1]
        if 0 < group.budget < num_tokens:
            selection = pruner.select(evidence, group.budget)
            if isinstance(selection, list):
                counts = pruner.tokens_per_layer(num_tokens, group.budget, num_layers=1, num_tower_layers=1)
                budget = None if counts is None else group.budget
                parts = [
                    each.checked(evidence, (1, num_tokens), pruner.name, budget, slice(image, image + 1))
                    for image, each in enumerate(selection)
                ]
            else:
                parts = [selection.checked(evidence, (num_frames, num_tokens), pruner.name, group.budget)]
        else:  # methods are not defined for these: nothing, or everything
            everything = torch.arange(group.budget, device=evidence.features.device)
            parts = [Selection(everything.expand(num_frames, -1))]
        if settings.in_raster_order:
            parts = [part.in_raster_order() for part in parts]
        chosen.append(Chosen(group, evidence, parts))
    return chosen


def project(encoded: EncodedMedia, chosen: list[Chosen], settings: PruningSettings) -> PrunedImageFeatures:
    """Gather the chosen tokens, or take the merged ones, and project them."""
    whole = chosen[0]
    if len(chosen) == 1 and len(whole.parts) == 1 and len(whole.group.frames) == len(encoded.grids):
        [selection], [tokens] = whole.parts, _tokens_of(whole, encoded)  # images of one size: no loop over them
        features = PrunedImageFeatures(
            pooler_output=list(tokens),
            retained_indices=selection.indices,
            similarity=selection.similarity,
            context_scores=selection.context,
            merge_weights=selection.weights,
        )
    else:
        features = _join_frames(encoded, chosen)
    features.num_visual_tokens = encoded.sizes
    features.last_hidden_state = encoded.tower_features
    features.deepstack_features = [_as_kept(of_layer, features) for of_layer in encoded.deepstack] or None
    _check_finite(features)
    return features


def _check_finite(features: PrunedImageFeatures) -> None:
    """Raises NotFiniteError if tokens or scores are NaN or infinite; a context score may be -inf, for "never".

    On other devices than a CPU the answer would have to be waited for; what comes out in the end is checked.
    """
    way_out = "are NaN or infinite. Get the checkpoint again, or choose a `pruning_method` that does not read them."
    of_media = (
        ("visual tokens", features.pooler_output, "NaN or infinite pixels or weights (too large for the dtype)."),
        ("values of `similarity`", features.similarity, f"weights that compare it with its sentences {way_out}"),
        ("`context_scores`", features.context_scores, f"weights of the vision tower {way_out}"),
    )
    for name, parts, reason in () if torch.compiler.is_compiling() else of_media:
        for image, values in enumerate(() if parts is None else parts):
            if values is not None and values.is_cpu and not values.isfinite().all():
                if name != "`context_scores`" or not (values < torch.inf).all():
                    raise NotFiniteError(f"Image or video {image} has {name} that are not finite: {reason}")


def _as_kept(of_media: list[torch.Tensor], kept: PrunedImageFeatures) -> list[torch.Tensor]:
    """Further features (N_i, D) of each image or video, gathered or merged as its visual tokens were."""
    weights = [None] * len(of_media) if kept.merge_weights is None else kept.merge_weights
    return [
        rows[indices.to(rows.device)] if merge is None else merge_tokens(merge.to(rows.device), rows)
        for rows, indices, merge in zip(of_media, kept.retained_indices, weights, strict=True)
    ]


def _check(encoded: EncodedMedia, guidance: Guidance, settings: PruningSettings) -> None:
    pruner = settings.before_language_model
    if pruner.needs_class_token and not encoded.has_class_token:
        defined = ", ".join(name for name in list_pruners() if not get_pruner(name).needs_class_token)
        raise ValueError(
            f"The pruning method {pruner.name!r} is not defined for {encoded.family}: it reads the class token or "
            f"the layers of a CLIP tower. Methods that are: {defined}."
        )
    if pruner.needs_text and guidance.input_ids is None:
        raise ValueError(
            f"The pruning method {pruner.name!r} is guided by sentences, but `guidance_input_ids` is None. Pass "
            "`expressions=[...]` to the processor and its whole output to the model, or choose another "
            "`pruning_method`."
        )
    if pruner.needs_text:
        guidance.check()
    if pruner.needs_text and len(guidance.input_ids) != len(encoded):
        raise ValueError(
            f"`guidance_input_ids` has sentences for {len(guidance.input_ids)} images or videos, but there are "
            f"{len(encoded)}: give one row each, those of the images first."
        )


def _tokens_of(chosen: Chosen, encoded: EncodedMedia) -> Iterator[torch.Tensor]:
    """Projected tokens (B, K, D) of each part."""
    is_ragged, known = len(chosen.parts) != 1, chosen.evidence.known_projection
    for frame, part in enumerate(chosen.parts):
        if part.features is not None:
            yield encoded.project(part.features)
            continue
        features = chosen.evidence.features if known is None else known
        tokens = gather_tokens(features[frame : frame + 1] if is_ragged else features, part.indices)
        yield tokens if known is not None else encoded.project(tokens)


def _join_frames(encoded: EncodedMedia, chosen: list[Chosen]) -> PrunedImageFeatures:
    """The tokens of each image or video, frame after frame."""
    counts = [t for t, _, _ in encoded.grids]
    sizes = [height * width for t, height, width in encoded.grids for _ in range(t)]
    selections: list[Selection | None] = [None] * len(sizes)
    tokens: list[torch.Tensor | None] = [None] * len(sizes)
    for group in chosen:
        own = [row for part in _tokens_of(group, encoded) for row in part.split(1)]
        for frame, selection, kept in zip(group.group.frames, _one_by_one(group.parts), own, strict=True):
            selections[frame], tokens[frame] = selection, kept
    offsets = [index * height * width for t, height, width in encoded.grids for index in range(t)]
    weights = [part.weights for part in selections]
    if any(own is not None for own in weights):  # a frame that is kept whole, beside merged ones, is as it was
        frames = zip(selections, sizes)
        weights = [one_hot(part.indices, size) if part.weights is None else part.weights for part, size in frames]
    return PrunedImageFeatures(
        pooler_output=_join(tokens, counts, partial(torch.cat, dim=0)),
        retained_indices=_join([part.indices + offset for part, offset in zip(selections, offsets)], counts),
        similarity=_join([part.similarity for part in selections], counts),
        context_scores=_join([part.context for part in selections], counts),
        merge_weights=_join(weights, counts, lambda parts: torch.block_diag(*parts)),
    )


def _one_by_one(parts: list[Selection]) -> Iterator[Selection]:
    """The selections of single frames, each a batch of one."""
    for part in parts:
        for row in range(len(part.indices)):
            yield Selection(*(None if value is None else value[row : row + 1] for value in part))


_CAT = partial(torch.cat, dim=-1)


def _join(of_frames: list, counts: Sequence[int], join: Callable[[list], torch.Tensor] = _CAT) -> list | None:
    """What belongs to the frames of one image or video (each a batch of one), in one tensor.

    `None` for a medium of which a frame has nothing, and for all if none has anything.
    """
    if all(part is None for part in of_frames):
        return None
    frames = iter(of_frames)
    media = [list(islice(frames, count)) for count in counts]
    return [None if any(part is None for part in parts) else join([part[0] for part in parts]) for parts in media]
