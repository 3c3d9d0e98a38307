"""labelme, with LiteLVLM in its list "AI Text-to-Annotation":

    pip install ".[osam]" labelme
    python examples/labelme_with_litelvlm.py scene.png

Words after the script are labelme's. A setting of the model is a keyword of `add_litelvlm` below.

labelme 6.3.1 has a list of models that nothing adds to, so this adds to it from outside. It also hands pictures to its
models with red and blue exchanged, as Qt stores them; this exchanges them back. Look at both when labelme changes.
"""

from labelme.__main__ import main
from labelme.widgets import AiTextToAnnotationWidget
from osam.apis import registered_model_types

from transformers_litelvlm.integrations.osam import NAME, register


def add_litelvlm(**settings):
    """Register the model with osam, and show it first in labelme's list."""

    class InQtOrder(register(**settings)):
        def generate(self, request):
            return super().generate(request.model_copy(update={"image": request.image[..., ::-1]}))

    registered_model_types[-1] = InQtOrder
    AiTextToAnnotationWidget._available_models = [(NAME, "LiteLVLM"), *AiTextToAnnotationWidget._available_models]
    AiTextToAnnotationWidget._default_model_name = NAME


if __name__ == "__main__":
    add_litelvlm(preset="balanced")
    main()
