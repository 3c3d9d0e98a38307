"""Requests that the OpenAPI description allows and forbids, made by Schemathesis: no answer that is not described."""

import base64
import io

import pytest

from transformers_litelvlm.serving.app import create_app


schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.strategies import booleans  # noqa: E402
from schemathesis.checks import load_all_checks  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_answers_are_described(start_service, scenes, mode):
    """Texts that stand for pictures are none: half of them are replaced by one."""
    load_all_checks()
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(start_service()))
    file, asked = io.BytesIO(), {}
    scenes[0][0].save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations if mode.is_positive else [each for each in operations if each.body]:

        @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
        @given(case=operation.as_strategy(generation_mode=mode), has_picture=booleans())
        def check(case, has_picture):
            if has_picture and isinstance(case.body, dict) and isinstance(case.body.get("image"), str):
                case.body["image"] = picture
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            asked.setdefault(operation.path, set()).add(answer.status_code)  # noqa: B023

        check()
    assert {*([200] if mode.is_positive else []), 422} <= asked["/v1/segment"]
    assert mode.is_negative or asked["/health"] == asked["/metrics"] == {200}
