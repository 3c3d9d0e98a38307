"""Upstream's common tests of processors, for a processor of ours and for the stock class that it subclasses."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import LlavaProcessor

from tests.support import tiny_llava
from tests.upstream.mixins import ProcessorTesterMixin


@dataclass(frozen=True)
class ProcessorCase:
    """How to make a small processor of ours, and the settings that upstream's needs beside its parts."""

    name: str
    parent: type
    make: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


# Not those of Qwen2.5-VL and Qwen3-VL: the stock classes need torchvision, which we do without.
PROCESSOR_CASES = [
    ProcessorCase(
        "llava_processor",
        LlavaProcessor,
        lambda: tiny_llava.tiny_processor(with_masks=False),
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
]


def processor_tests(case: ProcessorCase, is_ours: bool) -> type[unittest.TestCase]:
    """Upstream's tests for the class of ours, or for its parent with the same parts."""
    ours = case.make()
    parts = {name: getattr(ours, name) for name in case.parent.get_attributes()}
    settings = {**case.settings, "chat_template": ours.chat_template}

    class ProcessorTests(ProcessorTesterMixin, unittest.TestCase):
        stock_class = case.parent
        processor_class = type(ours) if is_ours else case.parent

        @classmethod
        def _setup_from_components(cls) -> Any:
            return case.make() if is_ours else case.parent(**parts, **settings)

        @staticmethod
        def prepare_processor_dict() -> dict[str, Any]:
            return settings

        @staticmethod
        def does_processor_return_mm_offsets(processor_class: type, method_name: str) -> bool:
            # Upstream asks whether the first base has another method; the first base of ours is a mixin.
            return ProcessorTesterMixin.does_processor_return_mm_offsets(case.parent, method_name)

    return ProcessorTests
