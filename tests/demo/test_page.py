"""The page without a browser; `make test-browser` uses it with one. Gradio is no part of the extra `test`."""

from pathlib import Path

import pytest


gr = pytest.importorskip("gradio")

import os  # noqa: E402

import httpx  # noqa: E402

from transformers_litelvlm.demo.page import build_page, page_options  # noqa: E402
from transformers_litelvlm.demo.running import files_of_gradio, shown  # noqa: E402
from transformers_litelvlm.serving.server import bind, in_address  # noqa: E402


@pytest.fixture
def page(comparer):
    with files_of_gradio() as folder:
        yield build_page(comparer, "Checkpoint: of a test.", folder)


@pytest.fixture
def client(page, comparer):
    """Under `no_network`: whatever would leave this machine is an error."""
    page.launch(prevent_thread_lock=True, quiet=True, **page_options(comparer.limits))
    with httpx.Client(base_url=page.local_url, timeout=60) as client:
        yield client
    page.close(verbose=False)


def test_nothing_is_left_beside_the_code(page):
    """Gradio writes stubs beside modules that define components."""
    import transformers_litelvlm

    assert list(Path(transformers_litelvlm.__file__).parent.rglob("*.pyi")) == []


def test_files_are_deleted_at_the_end():
    with files_of_gradio() as folder:
        (folder / "upload.png").write_bytes(b"x")
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not folder.exists()


def test_a_page_at_an_address_of_ipv6(page, comparer):
    try:
        with bind("::1", 0) as bound:
            port = bound.getsockname()[1]
    except OSError:
        pytest.skip("there is no IPv6 here")
    with shown(page, page_options(comparer.limits), in_address("::1"), port):
        assert httpx.get(f"http://[::1]:{port}/").status_code == 200


def test_the_page_reports_nothing_and_offers_no_api(page, client):
    assert page.analytics_enabled is False
    config = client.get("/config").json()
    assert {each["api_visibility"] for each in config["dependencies"]} <= {"private", "undocumented"}
    html = client.get("/").text
    assert "Checkpoint: of a test." in html and "fonts.googleapis.com" not in html


def ask(client, image, session):
    """What the page says about an image, and the event."""
    config = client.get("/config").json()
    compares = next(each for each in config["dependencies"] if len(each["inputs"]) == 5)
    body = {"data": [image, "a star", "", "", 16], "fn_index": compares["id"], "session_hash": session}
    client.post("/gradio_api/queue/join", json=body)
    return client.get("/gradio_api/queue/data", params={"session_hash": session}).text


@pytest.mark.parametrize("meta", [{"_type": "gradio.FileData"}, {"_type": "x"}, None])
def test_a_file_of_the_machine_is_not_read(client, scene, meta):
    """Gradio checks where a file lies only if the client says that it is one."""
    secret = scene[0]
    image = {"path": secret} if meta is None else {"path": secret, "meta": meta}
    said = ask(client, image, "test")
    assert "Mean IoU" not in said and "pruned.png" not in said
    assert "is no upload" in said or '"success":false' in said.replace(" ", "")
    assert client.get(f"/gradio_api/file={secret}").status_code == 403


@pytest.mark.parametrize("path", ["/dev/zero", "/nowhere.png", "../secret.png"])
def test_what_is_no_file_of_the_page(client, path):
    """A device would be read without an end."""
    assert "is no upload" in ask(client, {"path": path}, "test")


def test_an_upload_is_read(client, scene):
    with open(scene[0], "rb") as file:
        [path] = client.post("/gradio_api/upload", files={"files": file}).json()
    for number, meta in enumerate([{"meta": {"_type": "gradio.FileData"}}, {}]):
        assert "Mean IoU" in ask(client, {"path": path, **meta}, f"test{number}")
