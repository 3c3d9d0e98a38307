"""`make test-annotation-tools`: a real Label Studio asks `litelvlm serve`, and shows what it answered.

LABEL_STUDIO is its command; LABEL_STUDIO_PICTURES, if set, the folder for pictures of its pages, which need Chromium.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation


brush = pytest.importorskip("label_studio_sdk.converter.brush")

ROOT = Path(__file__).parents[2]
LABEL_STUDIO = os.environ.get("LABEL_STUDIO", ".venv-label-studio/bin/label-studio")
PICTURES = os.environ.get("LABEL_STUDIO_PICTURES")
EMAIL, PASSWORD = "annotator@example.com", "a-secret-password"
SCENE = generate_scene("test", 0)
LABELS = [each.sentence for each in SCENE.expressions[:3]]
TYPED = SCENE.expressions[3].sentence
TAGS = "".join(f"<Label value={quoteattr(name)}/>" for name in LABELS)
CONFIG = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">{TAGS}</BrushLabels>
  <TextArea name="sentence" toName="image" smart="true" placeholder="what to find"/>
</View>"""


def files():
    """Pictures as a user has them: PNG, and a JPEG of a phone that lies on its side."""
    upright, lying = io.BytesIO(), io.BytesIO()
    Image.fromarray(SCENE.image).save(upright, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    other = Image.fromarray(generate_scene("test", 1).image).resize((320, 200))
    other.transpose(Image.Transpose.ROTATE_90).save(lying, "JPEG", exif=exif, quality=95)
    return {"scene.png": upright.getvalue(), "lying.jpg": lying.getvalue()}


@contextmanager
def started(words, address, env):
    """A server, from when it is healthy; it is killed with all that it started."""
    log = open(os.devnull, "w") if "SERVER_LOG" not in os.environ else open(os.environ["SERVER_LOG"], "a")
    with log, subprocess.Popen(words, env={**os.environ, **env}, cwd=ROOT, stdout=log, stderr=log) as process:
        try:
            for _ in range(240):
                assert process.poll() is None, f"{words[0]} has ended"
                try:
                    if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(1)
            else:
                raise AssertionError(f"{words[0]} is not healthy")
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory):
    """A signed-in client of a new Label Studio."""
    address = free_address()
    words = [shutil.which(LABEL_STUDIO) or LABEL_STUDIO, "start", "--no-browser", "--internal-host", "127.0.0.1"]
    words += ["--port", address.rpartition(":")[2], "--data-dir", str(tmp_path_factory.mktemp("label_studio"))]
    # By default, it calls no address of its own machine: no backend, and no webhook, which it makes of a backend.
    env = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false", "COLLECT_ANALYTICS": "false"}
    with started([*words, "--username", EMAIL, "--password", PASSWORD], address, env):
        with httpx.Client(base_url=address, follow_redirects=True, timeout=120) as client:
            client.get("/user/login/")
            form = {"email": EMAIL, "password": PASSWORD, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
            client.post("/user/login/", data=form, headers={"Referer": address})
            client.headers |= {"X-CSRFToken": client.cookies["csrftoken"], "Referer": address}
            yield client


def ask(client, method, path, **keywords):
    answer = client.request(method, path, **keywords)
    assert answer.is_success, f"{path}: {answer.status_code} {answer.text[:500]}"
    return answer.json()


@pytest.fixture(scope="module")
def project(label_studio):
    """A project with two pictures and our backend."""
    made = ask(label_studio, "POST", "/api/projects/", json={"title": "Shapes", "label_config": CONFIG})
    for name, content in files().items():
        ask(label_studio, "POST", f"/api/projects/{made['id']}/import", files={"file": (name, content)})
    key = ask(label_studio, "POST", "/api/token/")["token"]  # a personal access token
    address = free_address()
    words = [sys.executable, "-m", "transformers_litelvlm_command", "serve", "--port", address.rpartition(":")[2]]
    words += ["--label-studio-url", str(label_studio.base_url).rstrip("/"), "--preset", "balanced"]
    env = {"LABEL_STUDIO_API_KEY": key, "LITELVLM_TOKEN": "secret", "PYTHONPATH": str(ROOT / "src")}
    with started(words, address, env):
        backend = {"url": address, "project": made["id"], "title": "litelvlm", "is_interactive": True}
        backend |= {"auth_method": "BASIC_AUTH", "basic_auth_user": "litelvlm", "basic_auth_pass": "secret"}
        yield made | {"backend": ask(label_studio, "POST", "/api/ml", json=backend)["id"]}


@pytest.fixture(scope="module")
def model():
    config = config_for_segmentation(DEFAULT_CHECKPOINT)
    config.set_pruning(pruning_preset="balanced")
    return load_for_segmentation(DEFAULT_CHECKPOINT, config)


def masks_alone(model, content, sentences):
    """Sentence -> mask (H, W) of a file, those that are not empty."""
    network, processor = model
    inputs = processor.segmentation_inputs(images=[Image.open(io.BytesIO(content))], expressions=[sentences])
    masks = network.segment(**inputs).masks[0].numpy()
    return {sentence: mask for sentence, mask in zip(sentences, masks, strict=True) if mask.any()}


def painted(regions):
    """Label -> mask (H, W) of regions, as Label Studio's own converter reads them."""
    result = [region["value"] | region for region in regions]
    return {
        key.removeprefix("mask-").rpartition("-")[0]: mask > 0
        for key, mask in brush.decode_from_annotation("mask", result).items()
    }


def assert_equal(found, expected):
    assert expected and found.keys() == expected.keys()
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)


def test_predictions_are_our_masks(label_studio, project, model):
    action = {"selectedItems": {"all": True, "excluded": []}}
    path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project['id']}"
    ask(label_studio, "POST", path, json=action)
    tasks = ask(label_studio, "GET", f"/api/tasks?project={project['id']}&fields=all")["tasks"]
    assert len(tasks) == 2
    for task, content in zip(sorted(tasks, key=lambda each: each["id"]), files().values(), strict=True):
        [prediction] = task["predictions"]
        assert_equal(painted(prediction["result"]), masks_alone(model, content, LABELS))
        assert prediction["model_version"].endswith("litelvlm 22% tokens")
        size = (prediction["result"][0]["original_width"], prediction["result"][0]["original_height"])
        assert size == ((320, 200) if "lying" in task["data"]["image"] else Image.fromarray(SCENE.image).size)


def test_a_typed_sentence_is_found(label_studio, project, model):
    [task, _] = sorted(each["id"] for each in ask(label_studio, "GET", f"/api/tasks?project={project['id']}")["tasks"])
    typed = {"from_name": "sentence", "to_name": "image", "type": "textarea", "value": {"text": ["no", TYPED]}}
    path = f"/api/ml/{project['backend']}/interactive-annotating"
    answer = ask(label_studio, "POST", path, json={"task": task, "context": {"result": [typed]}})
    expected = masks_alone(model, files()["scene.png"], [TYPED])
    assert_equal(painted(answer["data"]["result"]), {LABELS[0]: expected[TYPED]})


def test_a_project_without_a_brush_is_refused(label_studio, project):
    choices = '<Choices name="choice" toName="image"><Choice value="a"/></Choices>'
    config = f'<View><Image name="image" value="$image"/>{choices}</View>'
    made = ask(label_studio, "POST", "/api/projects/", json={"title": "No brush", "label_config": config})
    backend = ask(label_studio, "GET", f"/api/ml?project={project['id']}")[0]
    given = {"url": backend["url"], "project": made["id"], "auth_method": "BASIC_AUTH"}
    given |= {"basic_auth_user": "litelvlm", "basic_auth_pass": "secret"}
    answer = label_studio.post("/api/ml", json=given)
    assert answer.status_code == 400 and "422" in answer.text
    answer = label_studio.post("/api/ml", json=given | {"basic_auth_pass": "wrong"})
    assert answer.status_code == 400 and "401" in answer.text
