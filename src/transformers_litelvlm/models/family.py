"""The contract of a model family, and what all families share on top of it.

A family subclasses upstream's base model and head and says what differs: how its media become visual tokens
([`PrunedModelMixin`], the part "a family gives"). Encoding, selecting, shortening the prompt, `forward` and what it
returns are written once, here. Evaluation, benchmark, command line and cards call this contract and never ask which
family a model is of.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.decoder.cache import (
    check_rows,
    holds_pruned_prompt,
    positions_left_out,
    shortened_prompts,
)
from transformers_litelvlm.models.decoder.forward import forward_in_decoder
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Grid, Guidance
from transformers_litelvlm.models.guidance.selection import select
from transformers_litelvlm.models.outputs import MediaFeatures
from transformers_litelvlm.models.prompt.compaction import CompactionPlan
from transformers_litelvlm.models.prompt.embedding import embed_prompt
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt, check_columns, plan_of_kept, prune_prompt
from transformers_litelvlm.models.pruned_config import PRUNING_KEYWORDS
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.models.upstream import can_return_tuple, takes_old_cache_name


# Arguments that every method below adds to upstream's.
PRUNING_ARGUMENTS = ("pruning_config",)
SENTENCE_ARGUMENTS = ("guidance_input_ids", "guidance_attention_mask")
# What a prompt consists of beside its media.
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "mm_encoder_outputs")


class PrunedModelMixin:
    """For a family's base model, in front of upstream's.

    Attributes:
        media_arguments: by modality, the arguments of `get_image_features` (`get_video_features`), pixels first.
        own_media_arguments: those of `media_arguments` that upstream does not have.
        further_arguments: what else of `forward` belongs to the prompt.
        guidance_arguments: what guides the selection.
        output_class: of `forward`.
        takes_one_tensor: whether upstream's `forward` takes the features of images as one tensor, not as a list.
        can_share_prefix: whether prompts about one picture may be read once as far as they are the same.
        counts_positions: whether the position of a token is the number of tokens before it.
    """

    media_arguments: ClassVar[dict[str, tuple[str, ...]]]
    own_media_arguments: ClassVar[tuple[str, ...]] = ()
    further_arguments: ClassVar[tuple[str, ...]] = ()
    guidance_arguments: ClassVar[tuple[str, ...]] = SENTENCE_ARGUMENTS
    output_class: ClassVar[type]
    can_share_prefix: ClassVar[bool] = False
    counts_positions: ClassVar[bool] = True
    takes_one_tensor: ClassVar[bool] = False

    config: Any
    language_model: Any

    # ---- a family gives ---------------------------------------------------------------------------------------------

    @abstractmethod
    def media_grids(self, modality: str, arguments: dict[str, Any]) -> list[Grid]:
        """(t, h, w) visual tokens of each image or video, from shapes alone: nothing here asks the device."""

    @abstractmethod
    def encode(self, modality: str, arguments: dict[str, Any]) -> EncodedMedia:
        """The vision tower's states of images or videos, which no sentence changes.

        Args:
            modality: `"image"` or `"video"`.
            arguments: of `get_image_features` or `get_video_features`.

        Raises:
            ValueError: if pruning is not defined for the tower, or guidance is not what the config asks for.
        """

    def upstream_features(self, modality: str, arguments: dict[str, Any]) -> Any:
        """What upstream's `get_image_features` or `get_video_features` returns; no method of ours is called."""
        arguments = {name: value for name, value in arguments.items() if name not in self.own_media_arguments}
        return getattr(super(), f"get_{modality}_features")(**arguments, return_dict=True)

    def features_by_medium(self, features: Any, modality: str, arguments: dict[str, Any]) -> Any:
        """Features of upstream's, which a caller may have encoded, with an entry for each image or video."""
        return features

    def features_of_all_tokens(self, modality: str, arguments: dict[str, Any]) -> Any:
        """The same tokens, for a language model that drops some of them; a family may compute less for them."""
        return self.upstream_features(modality, arguments)

    @property
    def num_deepstack(self) -> int:
        """After how many decoder layers features of the media are added, see [`~outputs.MediaFeatures`]."""
        return 0

    def embed_sentences(self, guidance: Guidance) -> Guidance:
        """The sentences with their embeddings, if computing these takes long and no pruning setting changes them."""
        return guidance

    def full_positions(self, arguments: dict[str, Any]) -> torch.Tensor | None:
        """Upstream's positions of an unpruned prompt, (..., B, L); `None`: one after the other."""
        return None

    def continue_after(self, prompt: PrunedPrompt, full_positions: torch.Tensor) -> None:
        """Adapt what upstream derives from the length of the prompt, which is shorter than its positions say."""

    def check_short_prompt(self, prompt: PrunedPrompt) -> None:
        """Refuse a prompt with the kept placeholders alone that the family cannot use. Raises ValueError."""

    def decoder_positions(self, prompt: PrunedPrompt, embeds: torch.Tensor, cache: Any) -> torch.Tensor | None:
        """Positions of an unpruned prompt that has none, for methods inside the language model."""
        return None

    # ---- all families share -----------------------------------------------------------------------------------------

    # In the order in which guidance has their sentences; the argument with the pixels of each; and all arguments of
    # upstream's `forward` that make the prompt.
    modalities: ClassVar[tuple[str, ...]]
    pixels_of: ClassVar[dict[str, str]]
    prompt_arguments: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.modalities = tuple(cls.media_arguments)
        cls.pixels_of = {modality: names[0] for modality, names in cls.media_arguments.items()}
        media = [name for names in cls.media_arguments.values() for name in names]
        cls.prompt_arguments = (*TEXT_ARGUMENTS, *media, *cls.further_arguments)

    def settings(self, pruning_config: PruningConfig | PruningSettings | dict | None = None) -> PruningSettings:
        """The pruning settings of one call: those of the config, or `pruning_config` in their place; of a dict,
        the fields that it has."""
        return PruningSettings.of(self.config, pruning_config)

    def num_visual_tokens(self, modality: str, arguments: dict[str, Any]) -> list[int]:
        """N_i of each image or video, before pruning."""
        return [t * height * width for t, height, width in self.media_grids(modality, arguments)]

    def select(
        self, encoded: EncodedMedia, guidance: Guidance, settings: PruningSettings | None = None
    ) -> MediaFeatures:
        """The visual tokens that are kept of what [`encode`] returned, see [`~guidance.selection.select`]."""
        return select(encoded, guidance, settings or self.settings())

    def media_features(self, modality: str, arguments: dict[str, Any], settings: PruningSettings) -> Any:
        """Features of a modality under `settings`: pruned, or upstream's own output if nothing is cut before the
        language model."""
        own = {name: arguments[name] for name in self.media_arguments[modality] if name in arguments}
        own |= self._guidance_of(modality, arguments)
        return self.features_by_medium(self._features(modality, own, settings), modality, own)

    def _guidance_of(self, modality: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Guidance has rows for the images, then for the videos."""
        guidance = {n: arguments[n] for n in self.guidance_arguments if arguments.get(n) is not None}
        present = [m for m in self.modalities if arguments.get(self.pixels_of[m]) is not None]
        if len(present) < 2:
            return guidance
        num_images = len(self.media_grids(present[0], arguments))
        rows = slice(num_images) if modality == present[0] else slice(num_images, None)
        return {name: value[rows] for name, value in guidance.items()}

    def _features(self, modality: str, arguments: dict[str, Any], settings: PruningSettings) -> Any:
        guidance = {name: arguments.pop(name, None) for name in self.guidance_arguments}
        is_cut = settings.cuts(self.num_visual_tokens(modality, arguments))
        if not is_cut:
            return self.upstream_features(modality, arguments)
        if settings.before_language_model is None:
            return self.features_of_all_tokens(modality, arguments)
        return self.select(self.encode(modality, arguments | guidance), Guidance.of(guidance), settings)

    def _continue_after(self, inputs: dict[str, Any], cache: Any) -> None:
        """Give new tokens after pruned prompts their positions, which upstream would count by the tokens in `cache`.

        Raises:
            ValueError: if padding that pruning made would be read or counted, or for a mask of another length.
        """
        check_rows(cache, inputs)
        new = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        mask, length = inputs.get("attention_mask"), int(cache.get_seq_length()) + new.shape[1]
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] != length:
            raise ValueError(
                f"With the shortened prompt in `cache`, `attention_mask` needs {length} columns, got {mask.shape[1]}."
            )
        if (count := positions_left_out(cache)) and inputs.get("position_ids") is None:
            places = torch.arange(length - new.shape[1], length, device=new.device) + count
            inputs["position_ids"] = places.expand(len(new), -1)

    def _forward(self, upstream: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        pruning_config, prompt = arguments.pop("pruning_config", None), arguments.pop("pruned", None)
        is_for_head = prompt is not None
        if prompt is None:
            prompt = prune_prompt(self, arguments, self.settings(pruning_config), after=arguments.get("cache"))
        ours = {*self.prompt_arguments, *self.guidance_arguments}
        others = {name: value for name, value in arguments.items() if name not in ours}
        cache, output = others.get("cache"), None
        # A number: a static cache counts in a tensor, which grows. That of `generate_batch` cannot say it.
        past = 0 if cache is None or prompt.plan is None else int(cache.get_seq_length())
        if prompt.settings.inside_language_model is not None or (cache is not None and holds_pruned_prompt(cache)):
            output = forward_in_decoder(self, prompt, **others)
        if output is None and prompt.plan is None:
            if cache is not None and shortened_prompts(cache):
                self._continue_after(prompt.inputs, cache)
            inputs = prompt.inputs_with_one_tensor() if self.takes_one_tensor else prompt.inputs
            output = upstream(self, **inputs, return_dict=True, **others)
        elif output is None:
            output = dict(self.language_model(**embed_prompt(self, prompt, cache), return_dict=True, **others))
            output |= {f"{modality}_outputs": features for modality, features in prompt.encoded.items()}
        output = self.output_class(**output)
        if prompt.plan is None:
            return output
        if output.cache is not None:
            is_numbered = prompt.inputs.get("position_ids") is not None and not prompt.settings.keeps_positions
            prompt.note_in(output.cache, past, self.counts_positions, is_numbered)
        if not is_for_head:
            return _expanded(output, prompt)
        if prompt.wanted is not None:
            output.last_hidden_state = prompt.plan.take(output.last_hidden_state, prompt.wanted)
        return output


class PrunedHeadMixin:
    """For a family's model with a language-modeling head, in front of upstream's.

    Attributes:
        base_class: of `model`.
        output_class: of `forward`.
    """

    base_class: ClassVar[Callable[..., Any]]
    output_class: ClassVar[type]

    config: Any
    loss_function: Callable[..., torch.Tensor]

    def __init__(self, config: Any) -> None:
        # Upstream's constructor would build a stock base model only to throw it away.
        PreTrainedModel.__init__(self, config)
        self.model = type(self).base_class(config)
        text = config.text_config
        self.lm_head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def _forward(self, upstream: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        base = self.model
        settings = base.settings(arguments.pop("pruning_config", None))
        if settings.inside_language_model is not None and arguments.get("labels") is not None:
            return self._with_loss(upstream, arguments, settings)
        prompt = prune_prompt(base, arguments, settings, after=arguments.get("cache"))
        ours = {*base.prompt_arguments, *base.guidance_arguments}
        others = {name: value for name, value in arguments.items() if name not in ours}
        if prompt.plan is None:
            return self.output_class(**upstream(self, **prompt.inputs, **others, pruned=prompt, return_dict=True))
        plan, labels = prompt.plan, others.pop("labels", None)
        columns = _columns(others.pop("logits_to_keep", 0), plan.full_length, plan.index.device)
        if labels is None:
            prompt.wanted = columns
        else:  # the loss needs all logits
            check_columns("labels", labels, plan.full_length)
            # What nothing was before is not predicted from padding that pruning put there.
            others["labels"] = plan.apply(labels, -100).masked_fill(plan.index == 0, -100)
            if others.get("shift_labels") is not None:
                others["shift_labels"] = _shortened_targets(others["shift_labels"], plan)
        output = self.output_class(**upstream(self, **prompt.inputs, **others, pruned=prompt, return_dict=True))
        if prompt.wanted is None:
            output.logits = plan.expand(output.logits)
            output.logits = output.logits if columns is None else output.logits[:, columns]
        return _expanded(output, prompt)

    def _with_loss(self, upstream: Callable[..., Any], arguments: dict[str, Any], settings: PruningSettings) -> Any:
        """`_forward` with labels, if tokens leave inside the language model: the loss is that of the tokens that
        remain, so the last of an image, not the last in the prompt, stands before the text after it."""
        names = ("labels", "shift_labels", "num_items_in_batch")
        labels, targets, num_items = (arguments.pop(name, None) for name in names)
        kept_columns = arguments.pop("logits_to_keep", 0)
        output = self._forward(upstream, {**arguments, "pruning_config": settings})
        media = {modality: output.get(f"{modality}_outputs") for modality in self.model.modalities}
        media = {modality: features for modality, features in media.items() if features is not None}
        plan, logits = plan_of_kept(self.model, arguments, media, settings), output.logits
        if plan is not None:
            check_columns("labels", labels, plan.full_length)
            targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if targets is None else targets
            targets = _shortened_targets(targets, plan).masked_fill(~plan.is_real, -100)  # nothing follows padding
            logits = plan.apply_to_embeddings(logits)
        vocab_size = self.config.get_text_config().vocab_size
        further = {"num_items_in_batch": num_items, "shift_labels": targets}
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **further)
        columns = _columns(kept_columns, output.logits.shape[1], output.logits.device)
        logits = output.logits if columns is None else output.logits[:, columns]
        return self.output_class(**{**output, "loss": loss, "logits": logits})


def _shortened_targets(shift_labels: torch.Tensor, plan: CompactionPlan) -> torch.Tensor:
    """Labels of the next token, (B, L), as those of the token that is next in the shortened prompt, (B, L')."""
    labels = torch.nn.functional.pad(shift_labels[:, :-1], (1, 0), value=-100)  # of the tokens themselves
    return torch.cat((plan.apply(labels, -100)[:, 1:], shift_labels[:, -1:]), dim=1)


def _columns(logits_to_keep: int | torch.Tensor, length: int, device: torch.device) -> torch.Tensor | None:
    """The columns of a prompt that `logits_to_keep` names; `None` for all."""
    if isinstance(logits_to_keep, torch.Tensor):  # as an index of columns: also from the end, or as a mask
        return torch.arange(length, device=device)[logits_to_keep.to(device)]
    if not logits_to_keep:
        return None
    return torch.arange(max(length - logits_to_keep, 0), length, device=device)


def _expanded(output: Any, prompt: PrunedPrompt) -> Any:
    """The states of an output at the columns of the prompt that was passed; zeros for what was taken out of it."""
    if output.hidden_states is not None:
        expand = prompt.plan.expand
        output.hidden_states = tuple(None if each is None else expand(each) for each in output.hidden_states)
    if getattr(output, "last_hidden_state", None) is not None:
        output.last_hidden_state = prompt.plan.expand(output.last_hidden_state)
    return output


def pruned_forward(upstream: Any, *added: str) -> Callable[..., Any]:
    """`forward` of a family's class, with the arguments of upstream's and ours.

    Args:
        upstream: upstream's class.
        added: names of arguments in addition; `generate` and Trainer read them in the signature.
    """
    signature = _extended(upstream.forward, added)
    names = _names(signature)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As upstream, on the visual tokens that a pruning method keeps.

        Logits and hidden states have the columns of the prompt that was passed, with zeros for tokens that were
        pruned; `attentions` have those of the shortened prompt.

        Args:
            guidance_input_ids, guidance_attention_mask, guidance_pixel_values: see `get_image_features`.
            pruning_config: pruning settings of this call alone; a dict changes the fields that it has.

        Raises:
            ValueError: for another pruning keyword, which upstream would swallow.
        """
        if wrong := [name for name in kwargs if name in PRUNING_KEYWORDS and name not in PRUNING_ARGUMENTS]:
            raise ValueError(
                f"`{wrong[0]}` is no argument of `forward`: pass `pruning_config`, such as "
                f"`pruning_config={{'budget': 64}}`, for one call, or set `model.config.{wrong[0]}` for all."
            )
        return self._forward(upstream.forward, {**dict(zip(names, args)), **kwargs})

    forward.__signature__ = signature  # type: ignore[attr-defined]
    forward.__annotations__["return"] = signature.return_annotation  # whose fields upstream's tests read
    return can_return_tuple(takes_old_cache_name(forward))


def pruned_features(upstream: Any, modality: str, *added: str) -> Callable[..., Any]:
    """`get_image_features` or `get_video_features` of a family's base model, with upstream's arguments and ours."""
    name = f"get_{modality}_features"
    signature = _extended(getattr(upstream, name), added)
    names = _names(signature)

    def get_features(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Encode images (or videos) and project the visual tokens that the pruning method keeps.

        Args:
            guidance_input_ids: (M, T, L) the T expressions of each of M images, as the processor makes them; or
                (M, L), one for each.
            guidance_attention_mask: likewise; an expression that an image does not have is all zero.
            guidance_pixel_values: pictures for a CLIP beside the model, if the family takes one: one for each image,
                and for each temporal patch of a video.
            pruning_config: pruning settings of this call alone; a dict changes the fields that it has.
            The rest as upstream.

        Returns:
            Upstream's output if nothing is cut before the language model, else [`PrunedImageFeatures`].

        Raises:
            ValueError: if the method needs sentences and there are none, or the tower is not one it is defined for.
        """
        arguments = {**dict(zip(names, args)), **kwargs}
        settings = self.settings(arguments.pop("pruning_config", None))
        return_dict = arguments.pop("return_dict", None)
        output = self._features(modality, arguments, settings)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    get_features.__name__, get_features.__qualname__ = name, name
    get_features.__signature__ = signature  # type: ignore[attr-defined]
    return get_features


def _extended(upstream: Callable[..., Any], added: tuple[str, ...]) -> inspect.Signature:
    """Upstream's signature with keyword arguments added."""
    signature = inspect.signature(upstream)
    *named, variable = signature.parameters.values()
    if variable.kind is not inspect.Parameter.VAR_KEYWORD:
        raise TypeError(f"The last parameter of upstream's {upstream.__qualname__} is {variable}, not **kwargs.")
    ours = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        for name in (*added, *PRUNING_ARGUMENTS)
    ]
    return signature.replace(parameters=[*named, *ours, variable])


def _names(signature: inspect.Signature) -> list[str]:
    """Names of the arguments that may be given by position."""
    return list(signature.parameters)[1:-1]  # without self and **kwargs
