"""`make test-annotation-tools`: a real Label Studio asks `litelvlm serve`, and shows what it answered.

LABEL_STUDIO is its command; LABEL_STUDIO_PICTURES, if set, a folder for pictures of its page. SERVER_LOG, if set, is a
file for what both servers say.
"""

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

from tests.support.tool_pictures import SCENE, SENTENCES, SIZES, files, masks_alone


brush = pytest.importorskip("label_studio_sdk.converter.brush")

ROOT = Path(__file__).parents[2]
LABEL_STUDIO = os.environ.get("LABEL_STUDIO", ".venv-label-studio/bin/label-studio")
CHROMIUM = shutil.which("chromium")
EMAIL, PASSWORD = "annotator@example.com", "a-secret-password"
TYPED = SCENE.expressions[4].sentence
COLOURS = ("#d81b60", "#1e88e5", "#00897b")
TAGS = "".join(
    f'<Label value={quoteattr(name)} background="{of}"/>' for name, of in zip(SENTENCES, COLOURS, strict=True)
)
CONFIG = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image">{TAGS}</BrushLabels>
  <TextArea name="sentence" toName="image" smart="true" placeholder="what to find"/>
</View>"""


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


def tasks_of(label_studio, project):
    tasks = ask(label_studio, "GET", f"/api/tasks?project={project['id']}&fields=all")["tasks"]
    return sorted(tasks, key=lambda each: each["id"])


def test_predictions_are_our_masks(label_studio, project, bundled):
    """Of the action "Retrieve predictions", with pictures that were uploaded, read by Label Studio's converter."""
    action = {"selectedItems": {"all": True, "excluded": []}}
    path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project['id']}"
    ask(label_studio, "POST", path, json=action)
    for task, content, size in zip(tasks_of(label_studio, project), files().values(), SIZES, strict=True):
        [prediction] = task["predictions"]
        assert_equal(painted(prediction["result"]), masks_alone(*bundled, content, SENTENCES))
        assert " litelvlm 22% tokens" in prediction["model_version"]
        for region in prediction["result"]:
            assert (region["original_width"], region["original_height"]) == size


def test_a_typed_sentence_is_found(label_studio, project, bundled):
    task = tasks_of(label_studio, project)[0]["id"]
    typed = {"from_name": "sentence", "to_name": "image", "type": "textarea", "value": {"text": ["no", TYPED]}}
    path = f"/api/ml/{project['backend']}/interactive-annotating"
    answer = ask(label_studio, "POST", path, json={"task": task, "context": {"result": [typed]}})
    expected = masks_alone(*bundled, files()["scene.png"], [TYPED])
    assert_equal(painted(answer["data"]["result"]), {SENTENCES[0]: expected[TYPED]})


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


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_shows_masks(label_studio, project, tmp_path):
    """In a browser: the masks of the labels, and a suggestion for a sentence that is typed."""
    playwright = pytest.importorskip("playwright.sync_api")
    pictures = Path(os.environ.get("LABEL_STUDIO_PICTURES", tmp_path))
    quiet = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as started_playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--no-first-run", "--disable-sync", *quiet]}
        page = started_playwright.chromium.launch(**options).new_page(viewport={"width": 1280, "height": 900})
        address = str(label_studio.base_url).rstrip("/")
        page.goto(f"{address}/user/login/")
        page.fill("input[name=email]", EMAIL)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.goto(f"{address}/projects/{project['id']}/data?task={tasks_of(label_studio, project)[0]['id']}")
        expect, scores = playwright.expect, page.locator(".lsf-outliner-item")
        expect(scores).to_have_count(len(SENTENCES), timeout=60_000)
        page.wait_for_timeout(3000)  # masks are drawn after the list
        page.screenshot(path=pictures / "labels.png")
        page.get_by_text("Auto-Annotation").click()
        page.get_by_placeholder("what to find").fill(TYPED)
        page.keyboard.press("Enter")
        expect(page.get_by_text("1 suggestions")).to_be_visible(timeout=60_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=pictures / "typed.png")
