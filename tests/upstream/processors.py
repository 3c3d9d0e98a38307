"""Upstream's common tests of processors, for a processor of ours and for the stock class that it subclasses."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import LlavaProcessor, Qwen2_5_VLProcessor

from tests.support import tiny_llava, tiny_qwen2_5_vl
from tests.upstream import stand_ins  # noqa: F401  before what it makes importable
from upstream_tests.test_processing_common import ProcessorTesterMixin


@dataclass(frozen=True)
class ProcessorCase:
    """How to make a small processor of ours, and the settings that upstream's needs beside its parts."""

    name: str
    parent: type
    make: Callable[[], Any]
    settings: dict[str, Any] = field(default_factory=dict)


PROCESSOR_CASES = [
    ProcessorCase(
        "llava_processor",
        LlavaProcessor,
        tiny_llava.tiny_processor,
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    ProcessorCase("qwen_processor", Qwen2_5_VLProcessor, tiny_qwen2_5_vl.tiny_processor),
]


def processor_tests(case: ProcessorCase, is_ours: bool) -> type[unittest.TestCase]:
    """Upstream's tests for the class of ours, or for its parent with the same parts."""
    ours = case.make()
    parts = {name: getattr(ours, name) for name in case.parent.get_attributes()}
    settings = {**case.settings, "chat_template": ours.chat_template}

    class ProcessorTests(ProcessorTesterMixin, unittest.TestCase):
        processor_class = type(ours) if is_ours else case.parent

        @classmethod
        def _setup_from_components(cls) -> Any:
            return case.make() if is_ours else case.parent(**parts, **settings)

        @staticmethod
        def prepare_processor_dict() -> dict[str, Any]:
            return settings

    return ProcessorTests
