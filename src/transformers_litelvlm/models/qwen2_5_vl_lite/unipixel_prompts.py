"""What UniPixel was asked.

Words of the checkpoints' authors, as facts of the checkpoints: other words give other token ids.
"""

SYSTEM_PROMPT = "You are a helpful assistant."
SEG_TOKEN = "<|seg|>"

# First the one for referring expressions, then those for whole sentences, questions and descriptions. {medium} is
# "image" or "video".
QUESTION_TEMPLATES = (
    "Please segment the {expression} in this {medium}.",
    "{expression} Please provide the segmentation mask.",
    "{expression} Please answer the question and provide the segmentation mask.",
    "Please segment the object according to the description: {expression}",
)
ANSWER_TEMPLATES = (
    "The target is <|seg|>.",
    "The segmentation result is <|seg|>.",
    "Sure, the segmentation mask is <|seg|>.",
    "Sure, it is <|seg|>.",
    "<|seg|>.",
)
# Settings of `GroundingMedia`, whose defaults are UniPixel's further ones.
GROUNDING_MEDIA = {"system_prompt": SYSTEM_PROMPT}
