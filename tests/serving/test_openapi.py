"""Requests that the OpenAPI description allows and forbids, made by Schemathesis: no answer that is not described."""

import base64
import io

import pytest

from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter
from transformers_litelvlm.serving.service import Service


pytest.importorskip("schemathesis")  # which has hypothesis
import hypothesis  # noqa: E402
import schemathesis  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402


load_all_checks()
api = schemathesis.pytest.from_fixture("description")


@pytest.fixture(scope="module")
def description(bundled):
    service = Service(Segmenter(*bundled, Limits()), Limits())
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    service.close()


@pytest.fixture(scope="module")
def picture(scenes):
    file = io.BytesIO()
    scenes[0][0].save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@api.parametrize()
@hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
@hypothesis.given(has_picture=hypothesis.strategies.booleans())
def test_answers_are_described(case, picture, has_picture):
    """Texts that stand for pictures are none: half of them are replaced by one."""
    if has_picture and isinstance(case.body, dict) and isinstance(case.body.get("image"), str):
        case.body["image"] = picture
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
