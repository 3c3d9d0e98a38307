"""Names of checkpoints and data sets that are not there: what is said, and that it is said at once."""

import contextlib
import http.server
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests.support.families import FAMILIES
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation, load_for_segmentation
from transformers_litelvlm.models.guidance.clip import load_side_clip
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteForConditionalGeneration
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor
from transformers_litelvlm.utils import hub_names
from transformers_litelvlm.utils.hub_names import check_loadable, check_no_missing_path, check_source


PATHS = ["./x", "../x", "~/x", "a/b/c", "/nowhere", "x/", Path("x")]


@pytest.fixture
def never_asked(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_names, "get_hf_file_metadata", fail)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(
    "check",
    [
        check_no_missing_path,
        check_source,
        load_for_segmentation,
        AutoModelForReferringSegmentation.from_pretrained,
        LlavaLiteForConditionalGeneration.from_pretrained,
        LlavaLiteProcessor.from_pretrained,
        LlavaLiteConfig.from_pretrained,
        PruningConfig.from_pretrained,
    ],
)
def test_a_path_is_not_looked_for_on_the_hub(never_asked, check, path):
    with pytest.raises(OSError, match="does not exist: check the path. A repository on the Hub is named ORG"):
        check(path)


@pytest.mark.parametrize("name", ["./clip", "a/b/c", "clip"])
def test_nor_is_the_clip_of_the_guidance(never_asked, tmp_path, name):
    missing = f"{name!r} (does not exist|here)"
    with pytest.raises(ValueError, match=missing):
        load_side_clip(name, torch.float32, torch.device("cpu"))
    for family in FAMILIES[:2]:
        option = "guidance_tokenizer" if family.name == "llava" else "guidance_model"
        with pytest.raises(OSError, match=missing):
            family.processor_class.from_pretrained(family.save(tmp_path / family.name), **{option: name})


def test_a_word_is_a_folder(never_asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loads = (LlavaLiteForConditionalGeneration, LlavaLiteProcessor, AutoModelForReferringSegmentation)
    for look in (check_source, *(kind.from_pretrained for kind in loads)):
        hint = "A repository on the Hub is named ORGANISATION/NAME. `litelvlm convert glamm SOURCE FOLDER` makes one"
        with pytest.raises(OSError, match=f"^There is no folder 'glamm-refseg' here. {hint} of published weights.$"):
            look("glamm-refseg")
    Path("glamm-refseg").mkdir()
    Path("file.json").touch()
    for name in ("glamm-refseg", "glamm-refseg/", "./glamm-refseg", "file.json", tmp_path):
        check_source(name)


@contextlib.contextmanager
def silent():
    """A server that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def refusing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@contextlib.contextmanager
def answering():
    """A server that has nothing."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("server", "message"), [(silent, "cannot be asked for it"), (answering, None)])
def test_from_python_the_hub_is_asked_as_briefly(monkeypatch, tmp_path, server, message):
    """Unless it does not matter, since there is a cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_names, "_PATIENCE", 0.5)
    (tmp_path / "mine" / "models--organisation--name").mkdir(parents=True)
    configs = (LlavaLiteConfig, PruningConfig)
    loads = (AutoModelForReferringSegmentation, LlavaLiteForConditionalGeneration, LlavaLiteProcessor, *configs)
    checks = [lambda name: load_side_clip(name, torch.float32, torch.device("cpu"))]
    with server() as port:
        monkeypatch.setattr(hub_names, "hf_hub_url", lambda *args, **kwargs: f"http://127.0.0.1:{port}/config.json")
        check_loadable("organisation/name", cache_dir=tmp_path / "mine")
        check_loadable("organisation/name", local_files_only=True)
        if message is None:
            check_loadable("organisation/name")
            return
        for check in (check_loadable, *checks, *(kind.from_pretrained for kind in loads)):
            with pytest.raises((OSError, ValueError), match=message):
                check("organisation/name")


@pytest.mark.parametrize(
    ("server", "reason"),
    [(silent, "(no answer within|timed out)"), (refusing, "Connection refused"), (answering, None)],
)
@pytest.mark.parametrize("is_cached", [False, True])
def test_the_hub_is_asked_once_and_briefly(monkeypatch, tmp_path, server, reason, is_cached):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_names, "_PATIENCE", 0.5)
    if is_cached:
        (tmp_path / "models--organisation--name").mkdir()
    start = time.monotonic()
    with server() as port:
        monkeypatch.setattr(hub_names, "hf_hub_url", lambda *args, **kwargs: f"http://127.0.0.1:{port}/config.json")
        if reason is None:  # the one who loads says what the Hub has not
            check_source("organisation/name")
            return
        with pytest.raises(OSError, match=f"the Hub cannot be asked for it: .*{reason}") as error:
            check_source("organisation/name")
    assert time.monotonic() - start < 4  # three times as slow as it should be; retries take 25 seconds
    assert ("HF_HUB_OFFLINE=1" in str(error.value)) == is_cached


def test_offline_the_cache_alone_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set, and the cache does not have it"):
        check_source("organisation/name")
    (tmp_path / "models--organisation--name").mkdir()
    check_source("organisation/name")
    with pytest.raises(OSError, match="does not have it"):
        check_source("organisation/name", "dataset")
