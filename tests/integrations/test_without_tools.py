"""Modules can be imported without the tools; what needs one says what to install."""

import sys

import pytest

from transformers_litelvlm.integrations import cvat, osam, supervision


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("cvat_sdk.auto_annotation", "cvat", lambda: cvat.create("the star")),
        ("osam", "osam", osam.register),
        ("supervision", "supervision", lambda: supervision.to_detections({"masks": []})),
    ],
)
def test_the_error_names_the_extra(monkeypatch, package, extra, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "transformers-litelvlm\[{extra}\]"'):
        use()
