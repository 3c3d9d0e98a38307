"""The common tests that transformers ships, and stand-ins for what these import and is not shipped."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from tests.upstream.fetch import ROOT, folder


def _stand_in(name: str, **contents: Any) -> None:
    """A module of this name, for whoever imports it later."""
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module


# No tests of exporting and of generation are shipped, so these two give none. Ours compare tokens with upstream's.
_stand_in("upstream_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_stand_in("upstream_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
# Upstream's CI fetches pictures and videos in advance. One of our pictures does as well.
_stand_in(
    "fetch_hub_objects_for_ci",
    url_to_local_path=lambda url: str(ROOT / "examples/assets/demo.png") if url.endswith(".png") else url,
)

if not folder().is_dir():
    raise FileNotFoundError(f"{folder()} is missing: run `make test-upstream`, or `python tests/upstream/fetch.py`.")
sys.path.append(str(folder()))

from upstream_tests.test_modeling_common import ModelTesterMixin  # noqa: E402
from upstream_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


__all__ = ["ModelTesterMixin", "ProcessorTesterMixin"]
