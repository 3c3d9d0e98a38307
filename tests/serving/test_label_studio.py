"""What Label Studio asks and gets; pictures come from it alone, by addresses of files alone."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub.utils import httpx
from PIL import Image

from tests.support.brush import decoded
from tests.support.http_clients import alone, as_text, png
from transformers_litelvlm.models.pruned_config import change_pruning
from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.label_studio import LabelStudio, brush_of, version_of
from transformers_litelvlm.serving.requests import SETTINGS


PERSONAL = "header.payload.signature"
CONFIG = """
<View>
  <Image name="photo" value="$image"/>
  <View><BrushLabels name="mask" toName="photo">{}</BrushLabels></View>
  <TextArea name="sentence" toName="photo" smart="true"/>
</View>"""


def config_of(sentences):
    return CONFIG.format("".join(f'<Label value="{sentence}"/>' for sentence in sentences))


@contextmanager
def host(files, key="Bearer short-lived"):
    """A Label Studio that has files, and gives a short-lived key for the personal one. Yields address and requests."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, status, content=b"", **headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):  # noqa: N802
            asked.append((self.path, self.headers.get("Authorization")))
            if self.headers.get("Authorization") != key:
                self.answer(401)
            elif self.path.endswith("moved.png"):
                self.answer(302, Location="http://127.0.0.1:9/")
            else:
                self.answer(200, files[self.path]) if self.path in files else self.answer(404)

        def do_POST(self):  # noqa: N802
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_good = self.path == "/api/token/refresh/" and given == {"refresh": PERSONAL}
            self.answer(200, b'{"access": "short-lived"}') if is_good else self.answer(401)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def post(service, label_studio, path, body, token=None, auth=None):
    """The answer of the application to one request."""

    async def ask():
        transport = httpx.ASGITransport(create_app(service, token, label_studio))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=120) as client:
            return await client.post(path, json=body, auth=auth)

    return asyncio.run(ask())


def predict_body(sentences, *pictures, **context):
    tasks = [{"id": number, "data": {"image": picture}} for number, picture in enumerate(pictures, 1)]
    params = {"login": None, "password": None, "context": context or None}
    return {"tasks": tasks, "project": "1.2", "label_config": config_of(sentences), "params": params}


def message(answer, status=422):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def test_predictions_are_the_masks_of_the_model(start_service, bundled, scenes):
    (picture, sentences), (other, _) = scenes[1], scenes[0]
    service = start_service()
    with host({"/data/upload/1/a.png": png(picture)}) as (address, asked):
        pictures = ["/data/upload/1/a.png", f"data:image/png;base64,{as_text(other)}"]
        answer = post(service, LabelStudio(address, PERSONAL), "/predict", predict_body(sentences, *pictures))
    assert asked == [("/data/upload/1/a.png", "Bearer short-lived")]
    assert len(answer.json()["results"]) == 2 and answer.json()["model_version"].startswith(
        "refshapes_tiny litelvlm 22.222% tokens "
    )
    for found, shown in zip(answer.json()["results"], (picture, other), strict=True):
        output = alone(*bundled, shown, sentences, {})
        expected = {name: mask for name, mask in zip(sentences, output.masks[0].numpy(), strict=True) if mask.any()}
        assert [region["value"]["brushlabels"][0] for region in found["result"]] == list(expected) != []
        for region in found["result"]:
            assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "mask", "photo")
            assert (region["original_width"], region["original_height"]) == shown.size
            [label], size = region["value"]["brushlabels"], shown.size[::-1]
            np.testing.assert_array_equal(decoded(region["value"]["rle"], size), expected[label])
        assert found["score"] == pytest.approx(np.mean([region["score"] for region in found["result"]]))


def test_a_typed_sentence_has_the_first_label(start_service, bundled, scenes):
    picture, [*labels, sentence] = scenes[1]
    typed = [{"value": {"text": ["something else", sentence]}}, {"value": {"x": 1, "y": 2}}]
    answer = post(
        start_service(), LabelStudio("http://h"), "/predict", predict_body(labels, as_text(picture), result=typed)
    )
    [region] = answer.json()["results"][0]["result"]
    assert region["value"]["brushlabels"] == labels[:1]
    [mask] = alone(*bundled, picture, [sentence], {}).masks[0].numpy()
    np.testing.assert_array_equal(decoded(region["value"]["rle"], picture.size[::-1]), mask)


def test_an_empty_mask_is_no_region(start_service):
    picture = as_text(Image.new("RGB", (64, 64), "gray"))
    answer = post(start_service(), LabelStudio("http://h"), "/predict", predict_body(["the red ring"], picture))
    assert answer.json()["results"][0] | {"model_version": ""} == {"result": [], "score": 0, "model_version": ""}


def test_keys(start_service, scenes):
    """A legacy key is sent as it is; which one is missing or refused, the message says."""
    picture, sentences = scenes[1]
    service, body = start_service(), predict_body(sentences, "/data/upload/1/a.png")
    with host({"/data/upload/1/a.png": png(picture)}, "Token legacy") as (address, asked):
        assert post(service, LabelStudio(address, "legacy"), "/predict", body).status_code == 200
        assert "401" in message(post(service, LabelStudio(address, "wrong"), "/predict", body))
        assert "LABEL_STUDIO_API_KEY" in message(post(service, LabelStudio(address), "/predict", body))
        assert "does not take LABEL_STUDIO_API_KEY" in message(
            post(service, LabelStudio(address, "a.b.c"), "/predict", body)
        )
    assert [key for _, key in asked] == ["Token legacy", "Token wrong"]


@pytest.mark.parametrize(
    "picture",
    [
        "/api/users/",
        "/data/../api/users/",
        "/data/%2e%2e/api/users/",
        "/data/upload/./../../api",
        "//127.0.0.1:9/data/upload/1/a.png",
        "/database/x.png",
    ],
)
def test_the_key_is_for_files_alone(picture):
    with pytest.raises(ServiceError, match="is no file of a task: only /data/ and /storage-data/ are"):
        LabelStudio("http://127.0.0.1:9", "key").address_of(picture)


@pytest.mark.parametrize(
    "picture",
    [
        "http://127.0.0.1:9@127.0.0.1:8/data/upload/1/a.png",
        "http://127.0.0.1:99/data/upload/1/a.png",
        "https://127.0.0.1:9/data/upload/1/a.png",
        "data:image/png;base64,AAAA",
        "s3://bucket/a.png",
    ],
)
def test_what_is_elsewhere_is_no_file_of_label_studio(picture):
    assert LabelStudio("http://127.0.0.1:9", "key").address_of(picture) is None


def test_addresses_of_files():
    assert LabelStudio("http://h:9/", "").address_of("/data/upload/1/a.png") == "http://h:9/data/upload/1/a.png"
    below = LabelStudio("http://h/studio", "")
    assert below.address_of("/data/local-files/?d=a/b.png") == "http://h/studio/data/local-files/?d=a/b.png"
    with pytest.raises(ServiceError):
        below.address_of("http://h/data/upload/1/a.png")


def test_what_is_not_fetched(start_service, scenes):
    picture, sentences = scenes[1]
    service = start_service(max_request_mb=1)
    large = b"0" * (2**20 + 1)
    with host({"/data/upload/1/a.png": png(picture), "/data/upload/1/large": large}) as (address, asked):
        ours = LabelStudio(address, PERSONAL)

        def refused(picture, status=422):
            return message(post(service, ours, "/predict", predict_body(sentences, picture)), status)

        assert "this server does not fetch pictures" in refused("http://localhost:9/data/upload/1/a.png")
        assert "302" in refused("/data/upload/1/moved.png")  # the key does not go on to another host
        assert "404" in refused("/data/upload/1/none.png")
        assert "more than 1048576 bytes" in refused("/data/upload/1/large", 413)
        assert "no base64" in refused("s3://bucket/a.png")
        assert len(asked) == 3


def test_what_is_wrong_is_named(start_service, scenes, caplog):
    picture, sentences = scenes[1]
    service, ours = start_service(max_sentences=2), LabelStudio("http://h")
    caplog.set_level("INFO", "transformers_litelvlm.serving")

    def refused(**changes):
        return message(post(service, ours, "/predict", predict_body(["a"], as_text(picture)) | changes))

    assert refused(label_config="<View>").startswith("The labeling configuration is no XML")
    for config in (
        "<View/>",
        config_of([]),
        '<View><BrushLabels name="m" toName="i"><Label value="a"/></BrushLabels></View>',
    ):
        assert refused(label_config=config).startswith("The labeling configuration needs an <Image")
    assert refused(tasks=[{"id": 7, "data": {"text": "a"}}]).startswith("Task 7: There is no 'image'")
    assert refused(tasks=[{"id": 7, "data": {"image": "AAAA"}}]).startswith("Task 7: `image`")
    assert "at most 2 are allowed" in refused(label_config=config_of(["a", "b", "c"]))
    assert "tasks" in refused(tasks=5)
    assert "Task 7: There is no 'image'" in caplog.text  # Label Studio shows the status alone
    assert post(service, ours, "/setup", {"schema": "<View/>"}).status_code == 422
    answer = post(service, ours, "/setup", {"schema": config_of(["a"]), "project": "1.2"})
    assert set(answer.json()) == {"model_version"}
    assert post(service, ours, "/webhook", {"action": "ANNOTATION_CREATED"}).json() == {}


def test_only_who_is_named_may_ask(start_service):
    service, body = start_service(), {"schema": config_of(["a"])}
    assert post(service, None, "/setup", body).status_code == 404
    ours = LabelStudio("http://h")
    assert post(service, ours, "/setup", body, token="secret").status_code == 401
    assert post(service, ours, "/setup", body, token="secret", auth=("litelvlm", "wrong")).status_code == 401
    assert post(service, ours, "/setup", body, token="secret", auth=("litelvlm", "secret")).status_code == 200


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://h", "http://", "http://user:word@h", "http://h?a=b"])
def test_the_address_must_be_one(url):
    with pytest.raises(ValueError, match="such as http://localhost:8080"):
        LabelStudio(url)


def test_of_several_brushes_the_first():
    config = config_of(["a", "b"]).replace(
        "</View>\n  <TextArea", '<BrushLabels name="n" toName="photo"/></View>\n  <TextArea'
    )
    assert brush_of(config) == ("mask", "photo", "image", ["a", "b"])


def test_entities_do_not_fill_the_memory():
    """A few hundred bytes of XML that stand for gigabytes."""
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 11))
    bomb = f'<!DOCTYPE View [<!ENTITY e0 "aaaaaaaaaa">{entities}]><View>&e10;</View>'
    with pytest.raises(ServiceError, match="no XML"):
        brush_of(bomb)


def test_a_key_with_a_line_break_of_its_file(start_service, scenes):
    picture = scenes[0][0]
    with host({"/data/a.png": png(picture)}, key="Token legacy") as (address, _):
        body = predict_body(["the star"], "/data/a.png")
        assert post(start_service(), LabelStudio(address, " legacy\n"), "/predict", body).status_code == 200


@pytest.mark.parametrize("key", ["se\ncret", "se\0cret", "s\xe9cret"])
def test_a_key_that_no_header_can_have_is_not_shown(key):
    with pytest.raises(ValueError, match="LABEL_STUDIO_API_KEY, must be printable ASCII") as error:
        LabelStudio("http://h", key)
    assert "cret" not in str(error.value)


def test_another_setting_is_another_version(bundled, tmp_path):
    model = bundled[0]
    settings = [
        {"preset": "balanced"},
        {"preset": "faithful"},  # another layout alone
        {"retention_ratio": 0.221},
        {"then": {"method": "fastv", "budget": 4}},
        {"then": {"method": "fastv", "budget": 5}},
        {"method": "random", "budget": 32},
        {"method": "none"},
    ]
    configs = [
        change_pruning(model.config.pruning_config, {SETTINGS[name]: value for name, value in each.items()})
        for each in settings
    ]
    models = [
        SimpleNamespace(
            config=SimpleNamespace(pruning_config=pruning, _name_or_path="a/b"),
            mask_model=SimpleNamespace(name_or_path=sam),
            dtype=torch.float32,
        )
        for pruning in configs
        for sam in ("", "facebook/sam2.1", "facebook/sam")
    ]
    assert len({version_of(each) for each in models}) == len(models)
    assert version_of(models[1]).startswith("b litelvlm 22.222% tokens ")
