"""Every answer that is no success, and hostile input: a documented status, a code, and a message; never 5xx."""

import asyncio
import base64
import io
import json
import logging

import pytest
from PIL import Image

from tests.support.http_clients import as_text, client_of, form, png
from transformers_litelvlm.serving.answers import ErrorAnswer
from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.errors import CODES
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


PICTURE = Image.new("RGB", (40, 30), "red")
JSON = {"content-type": "application/json"}


def post(service, token=None, path="/v1/segment", method="POST", **request):
    async def ask():
        async with client_of(service, token) as client:
            return await client.request(method, path, **request)

    return asyncio.run(ask())


def check_error(answer, status, code, part=""):
    assert answer.status_code == status, answer.text
    error = ErrorAnswer.model_validate(answer.json()).error
    assert error.code == code and CODES[code][0] == status and part in error.message and "\n" not in error.message


def body(**fields):
    return {"image": as_text(PICTURE), "sentences": ["the star"], **fields}


INVALID = {
    "no picture": ({"image": None}, "`image` must be"),
    "base64 garbage": ({"image": "%%%"}, "no base64"),
    "base64 of no picture": ({"image": base64.b64encode(b"hello").decode()}, "cannot be read as a picture"),
    "cut picture": ({"image": base64.b64encode(png(PICTURE)[:60]).decode()}, "cannot be read as a picture"),
    "a path": ({"image": "/etc/passwd"}, "`image`"),
    "an address": ({"image": "http://127.0.0.1:9/a.png"}, "does not fetch"),
    "no sentences": ({"sentences": []}, "`sentences` must be"),
    "sentences of another type": ({"sentences": 3}, "`sentences` must be"),
    "an empty sentence": ({"sentences": ["  "]}, "must be a sentence"),
    "a number as a sentence": ({"sentences": ["the star", 3]}, "must be a sentence"),
    "a special token": ({"sentences": ["the [SEG]"]}, "special token [SEG]"),
    "a placeholder": ({"sentences": ["<image> star"]}, "special token <image>"),
    "half a surrogate pair": ({"sentences": ["\ud800"]}, "valid Unicode"),
    "too many sentences": ({"sentences": ["a"] * 17}, "at most 16"),
    "more words than the model reads": ({"sentences": ["a " * 4000]}, "positions"),
    "budget of text": ({"budget": "many"}, "`budget`"),
    "budget 0": ({"budget": 0}, "`budget`"),
    "budget -1": ({"budget": -1}, "`budget`"),
    "budget true": ({"budget": True}, "`budget`"),
    "ratio 2": ({"retention_ratio": 2}, "`retention_ratio`"),
    "both": ({"budget": 3, "retention_ratio": 0.5}, "exclude each other"),
    "unknown method": ({"method": "magic"}, "magic"),
    "unknown preset": ({"preset": "slow"}, "slow"),
    "unknown option": ({"method": "random", "method_options": {"sed": 1}}, "sed"),
    "options of another type": ({"method_options": [1]}, "`method_options`"),
    "unknown order": ({"token_order": "up"}, "`token_order`"),
    "unreachable": ({"method": "tome", "budget": 1}, "`budget`"),
    "unknown field": ({"bugdet": 3}, "Did you mean 'budget'?"),
}


@pytest.mark.parametrize("case", INVALID)
def test_what_the_model_cannot_follow(start_service, case):
    fields, part = INVALID[case]
    check_error(post(start_service(), content=json.dumps(body(**fields)), headers=JSON), 422, "invalid", part)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [("budget", "NaN", "NaN"), ("budget", "", "`budget`"), ("method_options", "{", "`method_options`")],
)
def test_fields_of_a_form(start_service, name, value, part):
    request = form(PICTURE, ["the star"])
    request["data"][name] = value
    check_error(post(start_service(), **request), 422, "invalid", part)


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b'{"image":' + b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "NaN": b'{"budget": NaN}',
    "too many digits": b'{"budget": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"image": "\xff"}',
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bodies_that_are_no_json_object(start_service, case):
    check_error(post(start_service(), content=BAD_BODIES[case], headers=JSON), 400, "bad_request")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", b"abc"),
        ("multipart/form-data; boundary=x", b"abc"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
    ],
)
def test_bodies_that_are_no_form(start_service, kind, content):
    check_error(post(start_service(), content=content, headers={"content-type": kind}), 400, "bad_request")


def test_forms_without_end(start_service):
    """Many fields, or many files: the number is bounded, not only the size."""
    request = form(PICTURE, ["a"] * 60)
    check_error(post(start_service(), **request), 400, "bad_request")
    files = [("image", (f"{i}.png", png(PICTURE))) for i in range(3)]
    check_error(post(start_service(), files=files, data={"sentences": "a"}), 400, "bad_request")


def test_another_type(start_service):
    check_error(
        post(start_service(), content=b"a", headers={"content-type": "text/plain"}), 415, "unsupported_media_type"
    )
    check_error(post(start_service(), content=b"a"), 415, "unsupported_media_type")


def test_a_body_above_the_limit_is_not_read(start_service):
    service = start_service(max_request_mb=1)
    check_error(post(service, content=b" " * (2**20 + 1), headers=JSON), 413, "too_large", "1 MB")
    sent = []

    async def endless():  # without a length
        while True:
            sent.append(2**16)
            assert sum(sent) < 2**22, "the body was read on and on"
            yield b" " * 2**16

    check_error(post(service, content=endless(), headers=JSON), 413, "too_large", "1 MB")
    header = {"content-type": "multipart/form-data; boundary=x"}
    check_error(post(service, content=endless(), headers=header), 400, "bad_request")  # is refused at once


def test_a_picture_of_too_many_pixels(start_service):
    request = form(Image.new("RGB", (200, 60)), ["the star"])
    check_error(post(start_service(max_pixels=11_999), **request), 422, "invalid", "200 x 60")
    assert post(start_service(max_pixels=12_000), **request).status_code == 200


def test_a_body_that_does_not_come(start_service):
    async def slow():
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    check_error(post(start_service(read_seconds=1), content=slow(), headers=JSON), 408, "timeout")


def test_token(start_service):
    service, request = start_service(), form(PICTURE, ["the star"])
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
    ):
        answer = post(service, "secret", headers=headers, **request)
        check_error(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer" and "secret" not in answer.text
    assert post(service, "secret", headers={"Authorization": "Bearer secret"}, **request).status_code == 200
    check_error(post(service, "secret", "/metrics", "GET"), 401, "unauthorized")
    assert post(service, "secret", "/health", "GET").status_code == 200


def test_addresses_and_methods_that_do_not_exist(start_service):
    check_error(post(start_service(), path="/v2/segment"), 404, "not_found")
    check_error(post(start_service(), method="GET"), 405, "method_not_allowed")


def test_a_fault_of_the_server_is_logged_with_the_id_and_not_told(bundled, start_service, caplog):
    class Faulty(Segmenter):
        def answer(self, jobs):
            return [RuntimeError("secret of the house")] * len(jobs)

    service = start_service(Faulty(*bundled, Limits()))
    with caplog.at_level(logging.ERROR, "transformers_litelvlm.serving"):
        answer = post(service, **form(PICTURE, ["the star"]))
    check_error(answer, 500, "internal")
    assert "secret" not in answer.text and answer.headers["x-request-id"] in caplog.text
    assert "secret of the house" in caplog.text


def test_the_documentation_lists_every_status_and_both_bodies(start_service):
    schema = create_app(start_service()).openapi()
    asked = schema["paths"]["/v1/segment"]["post"]
    own = {str(status) for code, (status, _) in CODES.items() if code not in ("not_found", "method_not_allowed")}
    assert set(asked["responses"]) == {"200", *own}
    for status in own:
        reference = asked["responses"][status]["content"]["application/json"]["schema"]["$ref"]
        assert reference == "#/components/schemas/ErrorAnswer"
    assert set(asked["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    answer = post(start_service(), path="/openapi.json", method="GET")
    assert answer.status_code == 200 and answer.json() == json.loads(json.dumps(schema))
    assert post(start_service(), path="/docs", method="GET").status_code == 200


def test_a_picture_that_unpacks_to_more_than_the_limit_is_not_decoded(start_service):
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")  # 10 kB for 81 million pixels
    assert len(file.getvalue()) < 100_000
    answer = post(start_service(), files={"image": ("a.png", file.getvalue())}, data={"sentences": "the star"})
    check_error(answer, 422, "invalid", "9000 x 9000")
