"""A detection function for `cvat-cli task auto-annotate`: a label's name is the sentence.

cvat-cli imports this module by its name, and calls [`create`] with what `-p name=type:value` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from transformers_litelvlm.integrations.sentence_segmenter import SentenceSegmenter
from transformers_litelvlm.utils.extras import needs_extra


if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext


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
        with needs_extra("cvat", "The function for CVAT"):
            from cvat_sdk.auto_annotation import DetectionFunctionSpec, label_spec

        self.sentences = [name.strip() for name in labels.split(";")]
        if not all(self.sentences) or len(set(self.sentences)) < len(self.sentences):
            raise ValueError(f"`labels` must be different names of labels, separated by ';', got {labels!r}.")
        labels_of_task = [label_spec(name, number, type="mask") for number, name in enumerate(self.sentences)]
        self.spec = DetectionFunctionSpec(labels=labels_of_task)
        self._segment = SentenceSegmenter(**settings)

    def detect(self, context: DetectionFunctionContext, image: Image.Image) -> list[Any]:
        """Annotations of a picture: masks that are not empty and have at least the score `conf_threshold`.

        Raises BadFunctionError if polygons are wanted, which have no holes.
        """
        from cvat_sdk.auto_annotation import BadFunctionError, mask
        from cvat_sdk.masks import encode_mask

        if context.conv_mask_to_poly:
            raise BadFunctionError("masks are not made polygons here: leave --conv-mask-to-poly out")
        found = self._segment(image, self.sentences, context.conf_threshold)
        return [mask(each.number, encode_mask(each.mask)) for each in found]


create = TextFunction
