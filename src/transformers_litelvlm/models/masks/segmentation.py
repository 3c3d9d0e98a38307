"""Masks for sentences: `segment`, `generate_masks` and their halves, for every family and every mask decoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.decoder.loop import recomputes_layers
from transformers_litelvlm.models.devices import pinned_to
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Guidance
from transformers_litelvlm.models.guidance.selection import choose, project
from transformers_litelvlm.models.masks.decoder import MaskDecoder, MaskGeometry, mask_decoder_class
from transformers_litelvlm.models.masks.output import ReferringSegmentationOutput
from transformers_litelvlm.models.masks.seg_tokens import count_seg, states_of_new_tokens, states_of_seg
from transformers_litelvlm.models.outputs import MediaFeatures, PrunedImageFeatures, token_lists
from transformers_litelvlm.models.prompt.compaction import count_prompt
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt, placeholder_mask, prune_prompt
from transformers_litelvlm.models.prompt.shared_prefix import read_after_shared_prefix, shared_prefix_length
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.models.side_stream import SideStream
from transformers_litelvlm.utils.messages import quoted


# What `segment` and `generate_masks` read beside the prompt.
MASK_INPUTS = ("mask_pixel_values", "original_sizes", "reshaped_input_sizes", "mask_num_frames", "num_prompt_images")
# Inputs with a row for each dialogue, those of the same length together.
PER_DIALOGUE = (
    ("input_ids", "attention_mask", "mm_token_type_ids"),
    ("guidance_input_ids", "guidance_attention_mask"),
    ("dialogue_images",),
)
# Read on the host: shapes depend on them.
_ON_HOST = (
    *("original_sizes", "reshaped_input_sizes", "mask_num_frames", "num_prompt_images", "dialogue_images"),
    "num_tiles",
)


class DialogueStates(NamedTuple):
    """What the language model makes of B dialogues.

    Attributes:
        states: (B, L', D) of the shortened prompt, or of its end if dialogues share the beginning.
        input_ids: (B, L') that they belong to.
        num_masks: [SEG] of each dialogue.
        kept: what was kept of the pictures or videos; `None` if nothing was cut.
    """

    states: torch.Tensor
    input_ids: torch.Tensor
    num_masks: list[int] | None = None
    kept: PrunedImageFeatures | None = None


if TYPE_CHECKING:  # every class that it is mixed into is one
    from transformers import PreTrainedModel as _Model
else:
    _Model = object


class ReferringSegmentationMixin(_Model):
    """For a family's model that writes masks, in front of its model with a language-modeling head. What
    [`AutoModelForReferringSegmentation`] loads is one, and for type checkers also a [`~transformers.PreTrainedModel`].

    `segment` takes what `processor.segmentation_inputs` returns, B dialogues about M pictures or videos, and is
    [`encode`], [`select`], [`read`], [`encode_for_masks`] and [`decode`] one after the other. Sweeps over pruning
    settings call these halves.

    Attributes:
        mask_modality: how `segmentation_inputs` hands pictures to the language model.
        reads_before_norm: whether the state of a [SEG] is read before the language model's final norm.
        reads_at_seg: whether it is the state at [SEG], not the one before it, which predicts it.
        answers_in_text: whether the masks come from text that the model generates, such as boxes, not from [SEG].
    """

    mask_modality: str
    answers_in_text = False
    reads_before_norm = False
    reads_at_seg = False

    model: Any
    mask_model: nn.Module
    config: Any
    # What upstream's models have.
    device: torch.device
    dtype: torch.dtype

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # of answers; upstream reads it from the names of classes it knows

    def prompts_of_seg(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, T, D) of [SEG] as prompts (B, T, n, C) of the mask decoder."""
        raise NotImplementedError

    @property
    def mask_decoder(self) -> MaskDecoder:
        """Of the kind that `config.mask_config` names."""
        return mask_decoder_class(self.config.mask_config)(self.mask_model)

    @torch.no_grad()
    def segment(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        pruning_config: PruningConfig | None = None,
        mask_features: Any = None,
        overlap_masks: bool = False,
        pin_memory: bool = False,
        **inputs: Any,
    ) -> ReferringSegmentationOutput:
        """Masks for all sentences of all pictures in ONE forward pass: the answers with [SEG] are part of the prompt.

        Args:
            input_ids, attention_mask: (B, L), one [SEG] per mask.
            pruning_config: pruning settings of this call alone; a dict changes the fields that it has.
            mask_features: of [`encode_for_masks`] instead of `mask_pixel_values`.
            overlap_masks: on CUDA, encode `mask_pixel_values` on a stream of its own beside the language model. It
                takes the memory of both at once. Default `False`; other devices compute one after the other.
            pin_memory: inputs may be on the host, and are copied to the device here; to CUDA from page-locked memory,
                so that the host does not wait, `mask_pixel_values` after the language model has its work. Inputs that
                are page-locked already must not be changed before the masks are there. Default `False`.
            inputs: what else the processor returned: pixels and sizes for the vision tower, of M pictures or videos;
                `guidance_input_ids` and `guidance_attention_mask`, (B, T, L) or (M, T, L), the sentences that guide
                the selection; `dialogue_images` (B,) the picture that each dialogue is about, ascending (default: one
                each); `mask_pixel_values` (M, 3, S, S), or the frames of all videos; `original_sizes`,
                `reshaped_input_sizes` (M, 2), height before width; `mask_num_frames` (M,) of videos, 0 for a picture
                among them; `num_prompt_images` (M,) where a dialogue shows several images, the frames of a video.
                Instead of pixels, `mm_encoder_outputs` with features of the dialogues, or of the pictures.

        Returns:
            [`ReferringSegmentationOutput`]; its lists have one entry per picture or video, its tensors one row per
            dialogue. On a CPU, an empty mask is remarked on in the log, once per process.

        Raises:
            ValueError: if a row of the prompt has no [SEG], or an input is missing, does not fit, or is unknown.
        """
        known = {*self.model.prompt_arguments, *self.model.guidance_arguments, *MASK_INPUTS, "dialogue_images"}
        if unknown := sorted(set(inputs) - known):
            raise ValueError(
                f"`segment` does not know the arguments {unknown}. It takes what `processor.segmentation_inputs` "
                f"returns: {', '.join(sorted(known))}; and `pruning_config`, such as {{'budget': 64}}."
            )
        inputs = on_host({"input_ids": input_ids, "attention_mask": attention_mask, **inputs})
        settings = self.model.settings(pruning_config)
        if pin_memory:
            later = () if overlap_masks else ("mask_pixel_values",)
            inputs = pinned_to(self.device, inputs, (*_ON_HOST, *later))
        if overlap_masks and mask_features is None:
            beside = SideStream(self.device)
            beside.start(partial(self.mask_decoder.encode_for_one_use, *for_mask_decoder(inputs)))
            read, mask_features = self.read(inputs, settings=settings), beside.result()
        else:
            read = self.read(inputs, settings=settings)
        if pin_memory and mask_features is None:
            inputs = pinned_to(self.device, inputs, _ON_HOST)
        return _remark(self.decode(read, inputs, mask_features))

    @torch.no_grad()
    def generate_masks(self, input_ids: torch.Tensor, **inputs: Any) -> ReferringSegmentationOutput:
        """Masks for every [SEG] that the model writes itself; the slow route, for open questions.

        Args:
            input_ids: (B, L) prompts that end where the answer begins.
            inputs: as in [`segment`], and arguments of `generate`. Greedy, and at most 512 new tokens, unless
                `generation_config` or these say otherwise.

        Returns:
            [`ReferringSegmentationOutput`] with `sequences`; an answer without [SEG] has no masks.
        """
        for_masks = {name: inputs[name] for name in (*MASK_INPUTS, "dialogue_images") if name in inputs}
        if inputs.get("generation_config") is None:
            inputs = {"do_sample": False, "max_new_tokens": 512, **inputs}
        inputs.update(return_dict_in_generate=True, output_hidden_states=[-1])  # the last layer's alone
        generated = self.generate(input_ids=input_ids, **inputs)
        if len(generated.sequences) != len(input_ids):
            raise ValueError("`generate_masks` takes one answer per prompt: `num_return_sequences` must be 1.")
        new_ids = generated.sequences[:, input_ids.shape[1] :]
        # Shifted by one, so that a state stands before the token it predicted, as in a full sequence. There is none at
        # the last token, which was not read again.
        shifted = nn.functional.pad(new_ids, (1, 0), value=-1)
        kept = getattr(generated, f"{self.mask_modality}_outputs")
        read = DialogueStates(states_of_new_tokens(generated, new_ids.shape[1]), shifted, kept=kept)
        output = self.decode(read, for_masks)
        output.sequences = generated.sequences
        return _remark(output)

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any):
        """As without masks; inputs that only masks need are left aside. With `dialogue_images`, pictures or videos are
        given once each, as in [`segment`]."""
        given = on_host({"input_ids": inputs, **kwargs}) if kwargs.get("dialogue_images") is not None else None
        kwargs = {name: value for name, value in kwargs.items() if name not in (*MASK_INPUTS, "dialogue_images")}
        if given is not None:
            features = self.features_of(given, self.model.settings(kwargs.get("pruning_config")))
            kwargs |= self._media_by_dialogue(given)
            kwargs[self.model.pixels_of[self.mask_modality]] = None
            kwargs["mm_encoder_outputs"] = {self.mask_modality: by_dialogue(features, given["shown"])}
        return super().generate(inputs, *args, **kwargs)

    # ---- the halves of `segment`, for sweeps and measurements -------------------------------------------------------

    def encode(self, inputs: dict[str, Any]) -> EncodedMedia:
        """What neither sentences nor pruning settings change: the vision tower on M pictures or videos."""
        return self.model.encode(self.mask_modality, self._media_of(inputs))

    def select(
        self, encoded: EncodedMedia, inputs: dict[str, Any], guidance: Guidance, settings: PruningSettings
    ) -> Any:
        """Features of the B dialogues of `inputs` under `settings`; or of the M pictures, if all dialogues about one
        get the same."""
        return self.model.select(*self.by_sentences(encoded, inputs, guidance, settings), settings)

    def by_sentences(
        self, encoded: EncodedMedia, inputs: dict[str, Any], guidance: Guidance, settings: PruningSettings
    ) -> tuple[EncodedMedia, Guidance]:
        """The media of each dialogue, and its sentences for each of them, if sentences decide what is kept; else the
        media as they are."""
        inputs, pruner = on_host(inputs), settings.before_language_model
        shown, is_guided = inputs["shown"], pruner is not None and pruner.needs_text and guidance.input_ids is not None
        if not is_guided or len(guidance.input_ids) != len(inputs["about"]):
            return encoded, guidance
        if "shown_by" in inputs:
            guidance = guidance.rows(inputs["shown_by"])
        return (encoded[shown] if len(shown) != len(encoded.grids) else encoded), guidance

    def read(
        self, inputs: dict[str, Any], features: Any = None, settings: PruningSettings | None = None
    ) -> DialogueStates:
        """What the language model makes of the dialogues.

        Args:
            inputs: of `processor.segmentation_inputs`.
            features: of [`select`]; default: encoded and selected here.
            settings: of this call; default: those of the config.
        """
        base, inputs = self.model, on_host(inputs)
        settings = settings or base.settings()
        ids, mask, about = inputs["input_ids"], inputs.get("attention_mask"), inputs["about"]
        # What shapes depend on is asked of the device before it has much to do; from here on, nothing waits for it.
        num_masks = count_seg(ids, self.config.seg_token_id, self.reads_at_seg)
        counts = None
        if settings.is_on:
            counts = {self.mask_modality: count_prompt(placeholder_mask(base, self.mask_modality, inputs), mask)}
        shared = 0
        may_share = base.can_share_prefix and settings.inside_language_model is None
        if may_share and len(set(about)) < len(about) and not recomputes_layers(base.language_model):
            shared = shared_prefix_length(ids, mask, about, self.config.image_token_id, self.config.seg_token_id)
        features = self.features_of(inputs, settings) if features is None else features
        _refuse_too_long(ids.shape[1], features, settings, self.config.get_text_config())
        if shared and len(features.pooler_output) != len(about):
            ids, states, kept = read_after_shared_prefix(base, ids, mask, features, about, shared, settings, counts)
            return DialogueStates(states, ids, num_masks, kept)
        prompt = self.shorten(inputs, features, settings, counts)
        states, kept = self.states_of(prompt)
        return DialogueStates(states, prompt.inputs["input_ids"], num_masks, kept)

    def num_kept(self, inputs: dict[str, Any], features: Any) -> list[int]:
        """Visual tokens that the language model reads in each dialogue.

        Args:
            features: of [`select`]; or what was kept, of [`read`].
        """
        inputs = on_host(inputs)
        kept = getattr(features, "retained_indices", None)
        sizes = [len(tokens) for tokens in (features.pooler_output if kept is None else kept)]
        if len(sizes) != len(inputs["shown"]):
            sizes = [sizes[place] for place in inputs["shown"]]
        totals = [0] * len(inputs["about"])
        for row, size in zip(inputs.get("shown_by", range(len(totals))), sizes, strict=True):
            totals[row] += size
        return totals

    def shorten(
        self, inputs: dict[str, Any], features: Any, settings: PruningSettings, counts: dict[str, Any] | None = None
    ) -> PrunedPrompt:
        """The prompt of the dialogues for `features` of [`select`]."""
        return prune_prompt(self.model, self.prompts_of(inputs, features), settings, counts=counts)

    def prompts_of(self, inputs: dict[str, Any], features: Any) -> dict[str, Any]:
        """Arguments of `forward` for the dialogues, with `features` of [`select`] in place of pixels."""
        inputs = on_host(inputs)
        given = {n: inputs[n] for n in self.model.prompt_arguments if inputs.get(n) is not None}
        given.pop(self.model.pixels_of[self.mask_modality], None)
        if len(set(inputs["about"])) < len(inputs["about"]):
            given |= self._media_by_dialogue(inputs)
        if len(features.pooler_output) != len(inputs["shown"]):
            features = by_dialogue(features, inputs["shown"])
        given["mm_encoder_outputs"] = {self.mask_modality: features}
        return given

    def states_of(self, prompt: PrunedPrompt) -> tuple[torch.Tensor, PrunedImageFeatures | None]:
        """States at the columns of the shortened prompt, and what was kept."""
        how = {"output_hidden_states": [-1]} if self.reads_before_norm else {}
        output = self.model(pruned=prompt, use_cache=False, **how)
        states = output.hidden_states[-1] if self.reads_before_norm else output.last_hidden_state
        kept = getattr(output, f"{self.mask_modality}_outputs")
        return states, kept if isinstance(kept, PrunedImageFeatures) else None

    def encode_for_masks(self, inputs: dict[str, Any]) -> Any:
        """The mask model's features of the pictures or videos; the sentences play no part."""
        return self.mask_decoder.encode(*for_mask_decoder(on_host(inputs)))

    def decode(
        self, read: DialogueStates, inputs: dict[str, Any], mask_features: Any = None
    ) -> ReferringSegmentationOutput:
        """Masks from the states of a prompt with [SEG].

        Args:
            read: of [`read`].
            inputs: of `processor.segmentation_inputs`.
            mask_features: of [`encode_for_masks`]; default: encoded here.
        """
        inputs = on_host({"input_ids": read.input_ids, **inputs})
        geometry, decoder = mask_geometry(inputs), self.mask_decoder
        if mask_features is None:
            mask_features = decoder.encode_for_one_use(*for_mask_decoder(inputs))
        seg = (self.config.seg_token_id, self.reads_at_seg)
        states, counts = states_of_seg(read.states, read.input_ids, *seg, read.num_masks)
        # A row for each mask, as padding would cost as much; dialogues are padded in the output, with zeros.
        prompts = torch.cat([row[:count] for row, count in zip(self.prompts_of_seg(states), counts, strict=True)])
        about = [image for image, count in zip(inputs["about"], counts, strict=True) for _ in range(count)]
        decoded = decoder.decode(mask_features, prompts, about, geometry)
        pred_masks = decoded.pred_masks
        if isinstance(pred_masks, torch.Tensor):  # not of videos
            pred_masks = pad_sequence(pred_masks.split(counts), batch_first=True)
        return ReferringSegmentationOutput.of(
            decoded.mask_logits,
            read.kept,
            iou_scores=decoded.iou_scores,
            object_scores=decoded.object_scores,
            pred_masks=pred_masks,
            seg_embeddings=pad_sequence(prompts.split(counts), batch_first=True),
        )

    # ---- how dialogues and pictures belong together -----------------------------------------------------------------

    def features_of(self, inputs: dict[str, Any], settings: PruningSettings) -> Any:
        """Those of `mm_encoder_outputs`, or else encode and select; for `inputs` of [`on_host`] with pixels of each
        picture or video once."""
        modality, base = self.mask_modality, self.model
        if (given := (inputs.get("mm_encoder_outputs") or {}).get(modality)) is not None:
            return base.features_by_medium(given, modality, inputs)
        media, pixels = self._media_of(inputs), base.pixels_of[modality]
        if media.get(pixels) is None:
            raise ValueError(f"`{pixels}` is missing: pass pictures to `processor.segmentation_inputs`.")
        sizes, num_shown = base.num_visual_tokens(modality, media), inputs["shown"][-1] + 1
        if len(sizes) != num_shown:
            raise ValueError(
                f"`{pixels}` holds {len(sizes)} pictures or videos, but `dialogue_images` names {num_shown}"
                f"{' (with `num_prompt_images`)' if 'shown_by' in inputs else ''}: give each of them once."
            )
        if settings.before_language_model is None or not settings.cuts(sizes):
            return base.media_features(modality, media, settings)  # upstream's own
        encoded, guidance = base.encode(modality, media), Guidance.of(inputs)
        encoded, guidance = self.by_sentences(encoded, inputs, guidance, settings)
        return project(encoded, choose(encoded, guidance, settings), settings)

    def _media_of(self, inputs: dict[str, Any]) -> dict[str, Any]:
        names = (*self.model.media_arguments[self.mask_modality], *self.model.guidance_arguments)
        return {name: inputs[name] for name in names if inputs.get(name) is not None}

    def _media_by_dialogue(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments with a row for each picture, image or video, with one for each that a dialogue shows."""
        places = dict.fromkeys(self.model.further_arguments, inputs["about"])
        places |= dict.fromkeys(self.model.media_arguments[self.mask_modality][1:], inputs["shown"])
        return {
            name: inputs[name][of_dialogues]
            for name, of_dialogues in places.items()
            if isinstance(inputs.get(name), torch.Tensor)
            and len(inputs[name]) == of_dialogues[-1] + 1
            and len(of_dialogues) != of_dialogues[-1] + 1
        }


def require_mask_parts(config: Any, class_name: str, without_masks: str) -> None:
    """Raises ValueError if a config has no mask decoder, but `class_name` needs one; `without_masks` is its parent."""
    if config.mask_config is None or config.seg_token_id is None:
        raise ValueError(
            f"{class_name} needs `mask_config` and `seg_token_id` in its config, got "
            f"mask_config={config.mask_config!r} and seg_token_id={config.seg_token_id!r}. Checkpoints without a "
            f"mask decoder load as {without_masks}."
        )


def _remark(output: ReferringSegmentationOutput) -> ReferringSegmentationOutput:
    """Empty masks are remarked on where it does not mean to wait for the device; elsewhere by who brings masks to the
    host."""
    return output.warn_if_empty() if output.masks[0].is_cpu else output


def by_dialogue(features: Any, places: Sequence[int]) -> Any:
    """Features of pictures, images or videos as those that the dialogues show, one after the other."""
    if len(features.pooler_output) == len(places):
        return features
    if isinstance(features, PrunedImageFeatures):
        return features.of_images(places)
    return MediaFeatures.of_lists(token_lists(features, places))


def _refuse_too_long(length: int, features: Any, settings: PruningSettings, config: Any) -> None:
    """Raises ValueError for prompts of `length` tokens that need positions the language model does not have."""
    needed = length
    if isinstance(features, PrunedImageFeatures) and not settings.keeps_positions:
        needed -= max(n - len(kept) for n, kept in zip(features.num_visual_tokens, features.pooler_output))
    limit = getattr(config, "max_position_embeddings", None) or needed
    if needed > limit:
        raise ValueError(
            f"`input_ids` has prompts of {length} tokens, which need {needed} positions after pruning, but the "
            f"language model has {limit} (`max_position_embeddings`): ask about fewer or shorter expressions at once."
        )


def on_host(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same with sizes on the host, in `about` the picture or video of each dialogue, and in `shown` the places of
    what the dialogues show among the media of the language model: the same, unless frames of a video are images. Then
    `shown_by` has the dialogue of each."""
    if "about" in inputs:
        return inputs
    inputs = {n: v.cpu() if n in _ON_HOST and isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    about = inputs.get("dialogue_images")
    rows = len(inputs["input_ids"])
    about = inputs["about"] = list(range(rows)) if about is None else about.tolist()
    if len(about) != rows or about[0] != 0 or any(later - earlier not in (0, 1) for earlier, later in pairwise(about)):
        raise ValueError(
            f"`dialogue_images` must name the picture or video of each of the {rows} dialogues, ascending from 0 and "
            f"without gaps, got {quoted(about)}."
        )
    inputs["shown"] = about
    if inputs.get("num_prompt_images") is not None:
        counts = inputs["num_prompt_images"].tolist()
        if len(counts) != about[-1] + 1 or min(counts) < 1:
            raise ValueError(
                f"`num_prompt_images` must have a number above 0 for each of {about[-1] + 1} pictures or videos, got "
                f"{quoted(counts)}."
            )
        ends = list(accumulate(counts))
        inputs["shown"] = [image for medium in about for image in range(ends[medium] - counts[medium], ends[medium])]
        inputs["shown_by"] = [row for row, medium in enumerate(about) for _ in range(counts[medium])]
    return inputs


def mask_geometry(inputs: dict[str, Any]) -> MaskGeometry:
    """Sizes of the pictures or videos, each with a height and a width."""
    if inputs.get("original_sizes") is None:
        raise ValueError("`original_sizes` is missing; `processor.segmentation_inputs` returns it.")
    sizes, num_media = {}, inputs["about"][-1] + 1
    for name in ("original_sizes", "reshaped_input_sizes"):
        of_media = inputs.get(name)
        sizes[name] = None if of_media is None else of_media.tolist()
        if of_media is not None and (of_media.shape != (num_media, 2) or (of_media < 1).any()):
            raise ValueError(
                f"`{name}` must have a positive height and width for each of {num_media} pictures or videos, got "
                f"{quoted(sizes[name])}."
            )
    return MaskGeometry(sizes["original_sizes"], sizes["reshaped_input_sizes"])


def for_mask_decoder(inputs: dict[str, Any]) -> tuple[torch.Tensor, list[int] | None]:
    """Pixels, and of videos the frames of each."""
    if inputs.get("mask_pixel_values") is None:
        raise ValueError("`mask_pixel_values` is missing: pass pictures to `processor.segmentation_inputs`.")
    pixels, frames = inputs["mask_pixel_values"], inputs.get("mask_num_frames")
    frames, num_media = None if frames is None else frames.tolist(), inputs["about"][-1] + 1
    expected = num_media if frames is None else sum(max(count, 1) for count in frames)
    if len(pixels) != expected or (frames is not None and len(frames) != num_media):
        raise ValueError(
            f"`mask_pixel_values` holds {len(pixels)} pictures or frames, but there are {num_media} pictures or videos"
            + ("." if frames is None else f", and `mask_num_frames` is {quoted(frames)}.")
        )
    return pixels, frames
