"""A detection function for `cvat-cli task auto-annotate`: a label's name is the sentence.

cvat-cli imports this module by its name, and calls [`create`] with what `-p name=type:value` says.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from transformers_litelvlm.integrations.sentence_segmenter import SentenceSegmenter
from transformers_litelvlm.utils.extras import needs_extra


with needs_extra("cvat", "The function for CVAT"):
    import cvat_sdk.auto_annotation as cvataa
    from cvat_sdk.masks import encode_mask


class TextFunction:
    """A detection function: a mask for each label that is found in a picture.

    Args:
        labels: names of labels of the task, separated by `;`. Each is the sentence that is asked.
        settings: of [`SentenceSegmenter`].

    Attributes:
        spec: the labels, as CVAT wants to know them.

    Raises:
        ValueError: a name is empty or stands twice, or as [`SentenceSegmenter`] does.
    """

    def __init__(self, labels: str, **settings: Any) -> None:
        self.sentences = [name.strip() for name in labels.split(";")]
        if not all(self.sentences) or len(set(self.sentences)) < len(self.sentences):
            raise ValueError(f"`labels` must be different names of labels, separated by ';', got {labels!r}.")
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(name, index, type="mask") for index, name in enumerate(self.sentences)]
        )
        self._segment = SentenceSegmenter(**settings)

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[Any]:
        """Annotations of a picture: masks that are not empty and have at least the score `conf_threshold`.

        Raises BadFunctionError if polygons are wanted, which have no holes.
        """
        if context.conv_mask_to_poly:
            raise cvataa.BadFunctionError("masks are not made polygons here: leave --conv-mask-to-poly out")
        found = self._segment(image, self.sentences, context.conf_threshold)
        return [cvataa.mask(each.number, encode_mask(each.mask)) for each in found]


create = TextFunction
