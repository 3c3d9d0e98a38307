"""The page without a browser; `make test-browser` uses it with one. Gradio is no part of the extra `test`."""

from pathlib import Path

import pytest


gr = pytest.importorskip("gradio")

import os  # noqa: E402

import httpx  # noqa: E402

from transformers_litelvlm.demo.page import build_page, page_options  # noqa: E402
from transformers_litelvlm.demo.running import files_of_gradio  # noqa: E402


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


def test_the_page_reports_nothing_and_offers_no_api(page, client):
    assert page.analytics_enabled is False
    config = client.get("/config").json()
    assert {each["api_visibility"] for each in config["dependencies"]} <= {"private", "undocumented"}
    html = client.get("/").text
    assert "Checkpoint: of a test." in html and "fonts.googleapis.com" not in html


def test_a_file_of_the_machine_is_not_read(client, tmp_path):
    """Only what was uploaded: Gradio decodes nothing here, but it still checks where a file lies."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    config = client.get("/config").json()
    looks = next(each for each in config["dependencies"] if len(each["inputs"]) == 5)
    image = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [image, "a star", "", "", 16], "fn_index": looks["id"], "session_hash": "test"}
    client.post("/gradio_api/queue/join", json=body)
    said = client.get("/gradio_api/queue/data", params={"session_hash": "test"}).text
    assert '"success":false' in said.replace(" ", "") and "cannot be read as a picture" not in said
    assert client.get(f"/gradio_api/file={secret}").status_code == 403
