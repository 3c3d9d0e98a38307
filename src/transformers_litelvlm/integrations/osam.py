"""A model for osam: `texts` of a prompt are sentences. labelme finds its models there.

`python -m transformers_litelvlm.integrations.osam` is the command `osam`, with this model.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from transformers_litelvlm.integrations.sentence_segmenter import SentenceSegmenter
from transformers_litelvlm.utils.extras import needs_extra


if TYPE_CHECKING:
    from osam.types import GenerateRequest, GenerateResponse, Model

NAME = "litelvlm:latest"


def register(**settings: Any) -> type[Model]:
    """Make osam know a model of the name `"litelvlm"`; it is loaded when it is first asked. Of several calls, the last
    holds.

    Args:
        settings: of [`SentenceSegmenter`].

    Returns:
        The type of the model, as osam's registry has it.
    """
    with needs_extra("osam", "The model for osam"):
        from osam import apis
        from osam.types import Annotation, BoundingBox, GenerateResponse, Model, ModelMetadata

    class TextModel(Model):
        name = NAME
        metadata = ModelMetadata(license_name="Apache-2.0, without the weights", license_url="", source_url="")
        _blobs: dict = {}  # nothing that osam would download

        def __init__(self) -> None:
            super().__init__()
            self._segment = SentenceSegmenter(**settings)

        def generate(self, request: GenerateRequest) -> GenerateResponse:
            """An annotation for each text that is found, with the part of the mask in its box.

            Raises:
                ValueError: there is no picture, or there are points, or no texts.
            """
            prompt = request.prompt
            if request.image is None:
                raise ValueError("`image` is needed: litelvlm has no image embeddings for osam.")
            if prompt is None or not prompt.texts or prompt.points is not None:
                raise ValueError("`prompt` must have `texts`, and no points: litelvlm finds what a sentence says.")
            found = self._segment(request.image, prompt.texts, prompt.score_threshold)
            annotations = []
            for each in found[: prompt.max_annotations]:
                left, top, right, bottom = each.box
                box = BoundingBox(xmin=left, ymin=top, xmax=right - 1, ymax=bottom - 1)  # osam's are included
                mask = each.mask[top:bottom, left:right]
                annotations.append(Annotation(bounding_box=box, text=each.sentence, score=each.score, mask=mask))
            return GenerateResponse(model=self.name, annotations=annotations)

    models = apis.registered_model_types
    models[:] = [known for known in models if known.name != NAME] + [TextModel]
    if apis.running_model is not None and apis.running_model.name == NAME:
        apis.running_model = None
    return TextModel


def main() -> None:
    """osam's command line, after options for this model."""
    with needs_extra("osam", "The model for osam"):
        from osam.__main__ import cli

    parser = argparse.ArgumentParser(
        prog="python -m transformers_litelvlm.integrations.osam", description=main.__doc__
    )
    for option in ("model", "preset", "method", "device"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--budget", type=int)
    parser.add_argument("--retention-ratio", type=float)
    parser.add_argument(
        "osam", nargs=argparse.REMAINDER, help="words for osam, such as: run litelvlm --image scene.png"
    )
    settings = vars(parser.parse_args())
    words = settings.pop("osam")
    register(**settings)
    cli(words, prog_name="osam")


if __name__ == "__main__":
    main()
