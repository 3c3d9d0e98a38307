"""What GLaMM and LISA were asked during training and evaluation: dialogue layout, questions and answers.

Words of the checkpoints' authors, as facts of the checkpoints: other words give other token ids.
"""

from __future__ import annotations

from typing import Any


SYSTEM_PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

# The layout "llava_v1": one blank after the system prompt and after a question, none after `</s>`.
_CHAT_TEMPLATE = (
    "SYSTEM "
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ 'IMAGE' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt else '' }}"
).replace("SYSTEM", SYSTEM_PROMPT)

_ASKING = (
    "Can you segment the {expression} in this image?",
    "Please segment {expression} in this image.",
    "What is {expression} in this image? Please respond with segmentation mask.",
    "What is {expression} in this image? Please output segmentation mask.",
)
_ASKING_LONGER = (
    "Could you provide a segmentation mask for the {expression} in this image?",
    "Please identify and segment the {expression} in this image.",
    "Where is the {expression} in this picture? Please respond with a segmentation mask.",
    "Can you highlight the {expression} in this image with a segmentation mask?",
)

ANSWER_TEMPLATES = [
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
]


def _without_last_mark(templates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(template[:-1] for template in templates)


# The variants without the last mark are deliberate: GLaMM was trained with both.
GLAMM_QUESTION_TEMPLATES = [
    *_ASKING,
    *_without_last_mark(_ASKING),
    *_ASKING_LONGER,
    *_without_last_mark(_ASKING_LONGER),
]

# First the one that LISA's evaluation of referring expressions uses, then those of its training, then the two for
# whole sentences (ReasonSeg), of which the last is that of its evaluation.
LISA_QUESTION_TEMPLATES = [
    _ASKING[3],
    _ASKING[0],
    "Please segment the {expression} in this image.",
    _ASKING[2],
    "{expression} Please respond with segmentation mask.",
    "{expression} Please output segmentation mask.",
]

# Arguments of LlavaLiteProcessor.
PROMPTS: dict[str, dict[str, Any]] = {
    "glamm": {
        "chat_template": _CHAT_TEMPLATE.replace(
            "IMAGE", "The <im_start><image><im_end> provides an overview of the picture.\\n"
        ),
        "question_templates": GLAMM_QUESTION_TEMPLATES,
        "answer_templates": ANSWER_TEMPLATES,
    },
    "lisa": {
        "chat_template": _CHAT_TEMPLATE.replace("IMAGE", "<im_start><image><im_end>\\n"),
        "question_templates": LISA_QUESTION_TEMPLATES,
        # Evaluation forces the bare answer; the others are those of training.
        "answer_templates": [ANSWER_TEMPLATES[-1], *ANSWER_TEMPLATES[:-1]],
        "one_expression_per_dialogue": True,
    },
}
