"""What the processors of all model families share: backends, pictures, the tokenizer and the sentences of guidance."""

from __future__ import annotations

import copy
import math
import mimetypes
import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, PreTrainedConfig
from transformers.utils import logging

from transformers_litelvlm.models.processing.sentences import (
    LastTurns,
    check_special_tokens,
    last_user_text,
    last_user_turn,
    nest_expressions,
    tokenize_guidance,
    tokenize_questions,
)
from transformers_litelvlm.models.remote_code import REMOTE_CLASSES, InstalledCodeMixin, write_stub
from transformers_litelvlm.models.upstream import _MARKED_RE, cached_file
from transformers_litelvlm.utils.image_io import MAX_PIXELS, load_rgb_image
from transformers_litelvlm.utils.messages import quoted
from transformers_litelvlm.utils.resizing import resized


logger = logging.get_logger(__name__)

GUIDANCE_TOKENIZER = "guidance_tokenizer"

# Of a square of as many pixels as a picture may have.
MAX_SIDE = math.isqrt(MAX_PIXELS)


class GuidedProcessorMixin(InstalledCodeMixin):
    """For a processor with a `guidance_tokenizer` (or `None`), in front of upstream's class.

    Attributes:
        turn_tokens: what of a rendered turn, beside placeholders, is no word of it.
        box_questions: questions about an `{expression}` that models of this family answer with boxes; none where it is
            not known in which units.
    """

    turn_tokens: tuple[str, ...] = ()
    box_questions: ClassVar[tuple[str, ...]] = ()

    # What the processor has.
    visual_token_grids: Callable[[BatchFeature], list[tuple[int, int, int]]]
    _normalize_conversations: Callable[[Any], tuple[list, bool]]
    tokenizer: Any
    guidance_tokenizer: Any
    seg_token: str  # in a family with masks
    user_marker: str
    assistant_marker: str

    @property
    def media_tokens(self) -> tuple[str, ...]:
        """Placeholders of the media, in the order in which guidance has their sentences."""
        raise NotImplementedError

    def grid_on_picture(
        self, features: BatchFeature, size: tuple[int, int]
    ) -> tuple[tuple[int, int], np.ndarray] | None:
        """Where the visual tokens of the first image are on it, if they are not one raster, but that of each tile.

        Args:
            size: (width, height) of the image.

        Returns:
            (rows, columns) of the raster that all tiles make together, and the place of each token in it, -1 for those
            of a thumbnail; `None` if they are in raster order.
        """
        return None

    def units_of_boxes(self, features: BatchFeature) -> list[tuple[float, float]]:
        """(width, height) of every image in the units of the boxes that the model writes: by default thousandths."""
        return [(1000.0, 1000.0) for _ in self.visual_token_grids(features)]

    def features_of_pictures(self, images: list[Image.Image]) -> BatchFeature:
        """What the model and its guidance get of images, without a prompt."""
        return self(images=images, return_tensors="pt")

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Upstream loads these two; the optional parts are ours to load."""
        return ["image_processor", "tokenizer"]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns: upstream's, and what guides pruning."""
        return [*super().model_input_names, *self.further_input_names]

    @property
    def further_input_names(self) -> list[str]:
        """Those that upstream does not know, or that no part in `get_attributes` says."""
        return [] if self.guidance_tokenizer is None else ["guidance_input_ids", "guidance_attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        shallow = copy.copy(self)
        # Saved in files of its own; that there are such files is written down, so that a copy without them is noticed.
        shallow.guidance_tokenizer = self.guidance_tokenizer is not None
        return super(GuidedProcessorMixin, shallow).to_dict()

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs: Any):
        """As upstream; the guidance tokenizer goes to the sub-folder `guidance_tokenizer`."""
        families = REMOTE_CLASSES.items()
        model_type = next((name for name, of in families if isinstance(self, of["AutoProcessor"])), None)
        if model_type is not None:
            self.auto_map = {"AutoProcessor": write_stub(save_directory, model_type)["AutoProcessor"]}
        if self.guidance_tokenizer is not None:
            self.guidance_tokenizer.save_pretrained(os.path.join(save_directory, GUIDANCE_TOKENIZER))
        files = super().save_pretrained(save_directory, **kwargs)
        # For the file alone: a processor that was loaded from it has none either.
        self.__dict__.pop("auto_map", None)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **kwargs)
        return files

    def apply_chat_template(self, conversation, *args: Any, processor_kwargs: dict | None = None, **kwargs: Any):
        """As upstream; when it tokenizes, the text of the last user turn guides pruning."""
        processor_kwargs = dict(processor_kwargs or {})
        if kwargs.get("tokenize"):
            conversations, _ = self._normalize_conversations(conversation)
            processor_kwargs.setdefault("expressions", LastTurns(map(last_user_turn, conversations)))
        return super().apply_chat_template(conversation, *args, processor_kwargs=processor_kwargs, **kwargs)

    def check_expressions(self, expressions: Iterable[str]) -> None:
        """Raises ValueError for an expression, as it stands in a prompt, that a tokenizer reads a special token in."""
        readers = [reader for reader in (self.tokenizer, self.guidance_tokenizer) if reader is not None]
        of_masks = [self.seg_token] if hasattr(self, "seg_token") else []
        check_special_tokens(expressions, readers, (*self.media_tokens, *of_masks))

    def add_guidance(self, features: BatchFeature, text: Any, expressions: Any, tokenizer: Any) -> None:
        """Add the sentences about the media in `features`, in the format of the features.

        Args:
            text: the prompts.
            expressions: sentences; or, as [`LastTurns`] or from the prompts, the question of the prompt that each
                medium is in. If a question has no words, nothing is added.
            tokenizer: that of the guidance.
        """
        if expressions is not None and not isinstance(expressions, LastTurns):
            sentences = nest_expressions(expressions, len(self.visual_token_grids(features)))
            check_special_tokens([sentence for of_medium in sentences for sentence in of_medium], [tokenizer])
            guidance = tokenize_guidance(tokenizer, sentences)
        else:
            # What users wrote that looks like a placeholder is none, where upstream has marked it.
            prompts = [_MARKED_RE.sub("", each) for each in ([text] if isinstance(text, str) else text or [])]
            special = (*self.media_tokens, *self.turn_tokens)
            turns = [last_user_text(each, self.user_marker, self.assistant_marker, *special) for each in prompts]
            turns = list(expressions) if expressions and all(expressions) else turns
            questions = [
                turn
                for token in self.media_tokens
                for turn, prompt in zip(turns, prompts, strict=True)
                for _ in range(prompt.count(token))
            ]
            if not questions or not all(questions):
                return
            guidance = tokenize_questions(tokenizer, questions, self.guidance_tokenizer is not None)
        features.update(in_format_of(features, guidance))


def check_sizes(name: str, processor: Any, limit: int = MAX_SIDE) -> None:
    """Refuse an image processor, the setting `name`, whose sizes leave nothing of a picture or fill the memory.

    Args:
        limit: of each size, in pixels: of a side, or of an area where the processor's sizes are areas.

    Raises:
        ValueError: names the size.
    """
    for field, sizes in ({} if processor is None else processor.to_dict()).items():
        if f"_{field}".endswith("_size") and sizes is not None:
            for part, size in sizes.items() if isinstance(sizes, dict) else [("", sizes)]:
                check_size(f"{name}.{field}" + (f".{part}" if part else ""), size, limit)


def check_size(name: str, size: Any, limit: int = MAX_SIDE) -> None:
    """Raises ValueError for a size, the setting `name`, that is no number of pixels from 1 to `limit`; it may be
    `None`."""
    if size is not None and (type(size) is not int or not 1 <= size <= limit):
        raise ValueError(f"`{name}` must be a number of pixels from 1 to {limit:,}, got {quoted(size)}.")


def check_switches(**switches: Any) -> None:
    """Raises ValueError for a setting that is not `True` or `False`: the text "no" would count as true."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False, got {quoted(value)}.")


def in_format_of(features: BatchFeature, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The tensors as what `features` hold: tensors, arrays or lists."""
    like = features["input_ids"] if "input_ids" in features else next(iter(features.values()))
    if isinstance(like, torch.Tensor):
        return dict(tensors)
    return {n: value.numpy() if isinstance(like, np.ndarray) else value.tolist() for n, value in tensors.items()}


def check_return_tensors(return_tensors: Any) -> None:
    """Masks are computed from tensors. Raises ValueError for another format than `"pt"`."""
    if return_tensors != "pt":
        raise ValueError(f'`return_tensors` of `segmentation_inputs` must be "pt", got {return_tensors!r}.')


def load_guidance_tokenizer(source: Any, arguments: dict[str, Any], is_needed: bool) -> Any:
    """The tokenizer in the sub-folder of a checkpoint, `None` if there is none (stock LLaVA).

    Args:
        arguments: of [`~models.loading.hub_arguments`].
        is_needed: whether the checkpoint was saved with one.

    Raises:
        ValueError: if it is there and cannot be loaded, or if it is needed and not there.
    """
    arguments = {**arguments, "subfolder": os.path.join(arguments.get("subfolder") or "", GUIDANCE_TOKENIZER)}
    names = ("tokenizer_config.json", "tokenizer.json", "vocab.json")
    if any(cached_file(source, name, **arguments, _raise_exceptions_for_missing_entries=False) for name in names):
        try:
            # With a config, upstream does not look for one in the sub-folder, which has none: offline, it would fail.
            tokenizer = AutoTokenizer.from_pretrained(source, config=PreTrainedConfig(), **arguments)
            if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # what upstream makes of no tokenizer.json
                raise OSError("It has no vocabulary beside special tokens.")
            return tokenizer
        except Exception as error:  # the libraries for tokenizers raise all kinds
            raise ValueError(
                f"The guidance tokenizer of {source}, in its sub-folder `{GUIDANCE_TOKENIZER}`, cannot be loaded: its "
                f"files are damaged or incomplete. ({type(error).__name__}: {error})"
            ) from error
    if is_needed:
        raise ValueError(
            f"{source} was saved with a guidance tokenizer, but its sub-folder `{GUIDANCE_TOKENIZER}` is not there, "
            "or cannot be reached: copy or download the whole checkpoint."
        )
    logger.warning(
        f"{source} has no guidance tokenizer, so prompts get no `guidance_input_ids` and methods that read the "
        "sentence cannot run. Pass `guidance_tokenizer=` to `from_pretrained`."
    )
    return None


def on_pil(processor):
    """The same image processor on its PIL backend, if it has one."""
    name = type(processor).__name__
    twin = None if name.endswith("Pil") else getattr(transformers, f"{name}Pil", None)
    return processor if processor is None or twin is None else twin(**processor.to_dict())


def resize_first(processor: Any, picture: Image.Image) -> Image.Image:
    """A picture in the size that an image processor on its PIL backend gives it, by the same resizing.

    The processor would do it itself, and copy the whole picture four times before.
    """
    size = resized(*picture.size, processor.size) if processor.do_resize else None
    if size is None or not type(processor).__name__.endswith("Pil"):
        return picture
    return picture.resize(size, processor.resample)


def read_images(images):
    """Paths and PIL pictures, however nested, as upright RGB; anything else is left to upstream."""
    if isinstance(images, list | tuple):
        return [read_images(image) for image in images]
    is_picture = isinstance(images, str | os.PathLike) or hasattr(images, "getexif")
    return load_rgb_image(images) if is_picture else images


def read_frames(videos):
    """Lists of pictures, or of their paths, however nested, as arrays (F, 3, H, W) of upright RGB; anything else is
    left to upstream. Raises ValueError for frames of different sizes."""
    if not isinstance(videos, list | tuple):
        return videos
    if not videos or not all(map(_is_frame, videos)):
        return [read_frames(video) for video in videos]
    frames = [np.asarray(load_rgb_image(frame)).transpose(2, 0, 1) for frame in videos]
    if len(sizes := {frame.shape[1:] for frame in frames}) > 1:
        raise ValueError(f"`videos` has a video with frames of different sizes, such as {sorted(sizes)[:2]}.")
    return np.stack(frames)


def _is_frame(value: Any) -> bool:
    is_path = isinstance(value, str | os.PathLike)
    return hasattr(value, "getexif") or (is_path and f"{mimetypes.guess_type(value)[0]}".startswith("image/"))
