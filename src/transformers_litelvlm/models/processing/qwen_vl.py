"""What the processors of Qwen's vision-language models share: images and videos on PIL, and the tokens of guidance."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil

from transformers_litelvlm.models.loading import access_arguments, hub_arguments
from transformers_litelvlm.models.processing.processor import (
    GuidedProcessorMixin,
    check_sizes,
    in_format_of,
    load_guidance_tokenizer,
    on_pil,
    read_frames,
    read_images,
)
from transformers_litelvlm.models.processing.sentences import check_call
from transformers_litelvlm.utils.hub_names import check_loadable
from transformers_litelvlm.utils.image_io import MAX_PIXELS


class QwenVLProcessorMixin(GuidedProcessorMixin):
    """For a processor of images and videos, in front of upstream's class.

    Sentences are in the language model's tokens, or in those of a CLIP beside the model, if there is a
    `guidance_tokenizer`; `guidance_image_processor` is that CLIP's.

    Attributes:
        video_processor_type: class of `video_processor`, which runs on PIL.
    """

    video_processor_type: ClassVar[Any]
    turn_tokens = ("<|vision_start|>", "<|vision_end|>", "<|im_end|>")
    # The words that these models were trained with, and a way to say that nothing matches. The second is for a whole
    # sentence.
    box_questions = (
        "Locate {expression}, report the bbox coordinates in JSON format. If there is no such object, answer with [].",
        "{expression} Locate what this asks for, report the bbox coordinates in JSON format. If there is no such "
        "object, answer with [].",
    )

    image_token: str
    video_token: str
    image_processor: Any

    def set_parts(
        self,
        image_processor: Any,
        video_processor: Any,
        guidance_tokenizer: Any,
        guidance_image_processor: Any,
        user_marker: str,
        assistant_marker: str,
    ) -> Any:
        """Set what upstream's constructor does not. Returns the image processor for it.

        Raises:
            ValueError: for sizes that leave nothing of a picture or fill the memory.
        """
        if isinstance(guidance_image_processor, dict):  # as saved in processor_config.json
            guidance_image_processor = CLIPImageProcessorPil(**guidance_image_processor)
        if not isinstance(video_processor, self.video_processor_type):
            settings = {} if video_processor is None else video_processor
            settings = settings if isinstance(settings, dict) else settings.to_dict()
            video_processor = self.video_processor_type(**settings)
        self.video_processor = video_processor
        self.guidance_tokenizer = guidance_tokenizer
        self.guidance_image_processor = guidance_image_processor
        self.user_marker = user_marker
        self.assistant_marker = assistant_marker
        image_processor = on_pil(image_processor)
        check_sizes("guidance_image_processor", guidance_image_processor)
        check_sizes("image_processor", image_processor, MAX_PIXELS)
        check_sizes("video_processor", video_processor, MAX_PIXELS)
        return image_processor

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        expressions: str | list | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """As upstream, with the sentences for guidance.

        Args:
            images, text, videos: as upstream; paths and PIL images are turned upright and made RGB.
            expressions (`str`, `list[str]` or `list[list[str]]`, *optional*): what to find: one sentence for all, for
                one image or video its sentences, for several one sentence each, or a list of sentences for each;
                images first, then videos. Default: the last user turn of each prompt.

        Returns:
            `BatchFeature` with upstream's keys; of M images and videos `guidance_input_ids` and
            `guidance_attention_mask`, (M, T, L), or (M, L) where `expressions` are not given; and
            `guidance_pixel_values` where this processor has a CLIP's.

        Raises:
            ValueError: for an empty sentence, one that contains a special token, or a number of sentences that does
                not fit.
        """
        check_call(text, kwargs)
        images, videos = read_images(images), read_frames(videos)
        features = super().__call__(images=images, text=text, videos=videos, **kwargs)  # type: ignore[misc]
        frames = features.pop("first_frames", [])
        if images is None and videos is None:
            return features
        self.add_guidance(features, text, expressions, self.guidance_tokenizer or self.tokenizer)
        if self.guidance_image_processor is not None:
            pictures = self.guidance_image_processor([*_flat(images), *frames], return_tensors="pt")
            features.update(in_format_of(features, {"guidance_pixel_values": pictures["pixel_values"]}))
        return features

    @property
    def media_tokens(self) -> tuple[str, ...]:
        return (self.image_token, self.video_token)

    @property
    def further_input_names(self) -> list[str]:
        # Without a CLIP's tokenizer, sentences are in the tokens of the language model.
        pictures = [] if self.guidance_image_processor is None else ["guidance_pixel_values"]
        return [*self.video_processor.model_input_names, "guidance_input_ids", "guidance_attention_mask", *pictures]

    def visual_token_grids(self, features: BatchFeature) -> list[tuple[int, int, int]]:
        """(frames, rows, columns) of the visual tokens of every image, then of every video, before pruning."""
        merge = self.image_processor.merge_size
        grids = [row for name in ("image_grid_thw", "video_grid_thw") for row in features.get(name, [])]
        return [(int(t), int(height) // merge, int(width) // merge) for t, height, width in grids]

    def _process_videos(self, videos, **kwargs: Any):
        kwargs["return_first_frames"] = self.guidance_image_processor is not None
        return super()._process_videos(videos, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, guidance_model=None, **kwargs: Any):
        """As upstream.

        Args:
            guidance_model: folder or Hub id of the CLIP of a model with `guidance="clip"`. Not needed where the
                checkpoint was saved with it.

        Raises:
            OSError: a path that does not exist, or a repository that cannot be reached.
        """
        place = hub_arguments(pretrained_model_name_or_path, kwargs)
        processor = super().from_pretrained(  # type: ignore[misc]
            pretrained_model_name_or_path, **{**kwargs, **place}
        )
        # Upstream's own video processor needs torchvision.
        processor.video_processor = cls.video_processor_type.from_pretrained(
            pretrained_model_name_or_path, **{**kwargs, **place}
        )
        check_sizes("video_processor", processor.video_processor, MAX_PIXELS)
        if guidance_model is not None:
            access = access_arguments(kwargs)
            check_loadable(guidance_model, **access)
            processor.guidance_tokenizer = AutoTokenizer.from_pretrained(guidance_model, **access)
            processor.guidance_image_processor = without_cropping(guidance_model, **access)
        elif processor.guidance_image_processor is None:
            processor.guidance_tokenizer = None
        else:
            processor.guidance_tokenizer = load_guidance_tokenizer(pretrained_model_name_or_path, place, True)
        return processor


def without_cropping(source, **access: Any) -> CLIPImageProcessorPil:
    """A CLIP's image processor that squeezes the whole picture into CLIP's square; `access` says how it is loaded."""
    processor = CLIPImageProcessorPil.from_pretrained(source, **access)
    settings = processor.to_dict()
    side = dict(settings["crop_size"])
    return CLIPImageProcessorPil(**{**settings, "size": side, "do_center_crop": False})


def _flat(images) -> list:
    if isinstance(images, list | tuple):
        return [picture for image in images for picture in _flat(image)]
    return [] if images is None else [images]
