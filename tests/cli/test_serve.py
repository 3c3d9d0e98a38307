"""`litelvm serve`: what is checked before a server starts, and the real thing as a process."""

import dataclasses
import json
import signal
import socket
import sys

import pytest
from huggingface_hub.utils import httpx

from tests.support.http_clients import form
from tests.support.serving import running_server
from transformers_litelvlm.cli.errors import BadInputError
from transformers_litelvlm.cli.main import build_parser, main
from transformers_litelvlm.cli.serve import LIMITS, TOKEN_VARIABLE, read_token
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.server import in_address
from transformers_litelvlm.utils.image_io import load_rgb_image


def test_options_are_the_limits_with_their_defaults():
    args = build_parser().parse_args(["serve"])
    names = [option.removeprefix("--").replace("-", "_") for option in LIMITS]
    assert {name: getattr(args, name) for name in names} == dataclasses.asdict(Limits())
    assert (args.host, args.port, args.allow_urls, args.inexact_batches) == ("127.0.0.1", 8000, False, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-wait-ms", "nan"], "`batch_wait_ms` must be at least 0, got nan"),
        (["--cache-mb", "-1"], "`cache_mb` must be at least 0, got -1"),
        (["--max-pixels", "64000001"], "`max_pixels` must be at most 64000000"),
        (["--model", "absent/folder/here"], "absent/folder/here"),
        (["--budget", "4", "--method", "magic"], "magic"),
        (["--token-file", "absent.txt"], "--token-file absent.txt: "),
        (["--mask-model", "absent/sam"], "--mask-model needs --model"),
        (["--label-studio-url", "localhost:8080"], "--label-studio-url: must be an address such as http://localhost"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("litelvlm: error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_ports_that_do_not_exist(capsys, port):
    with pytest.raises(SystemExit):
        main(["serve", "--port", port])
    assert "must be a number from 0 to 65535" in capsys.readouterr().err


def test_the_token(monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    file = tmp_path / "token"
    file.write_text(" secret\n")
    assert read_token(None) is None and read_token(str(file)) == "secret"
    monkeypatch.setenv(TOKEN_VARIABLE, "other")
    assert read_token(None) == "other" and read_token(str(file)) == "secret"
    for bad in ("", "  ", "two words", "schlüssel", "a\x00b"):
        file.write_text(bad)
        with pytest.raises(BadInputError) as error:
            read_token(str(file))
        assert not bad.strip() or bad not in str(error.value)
    monkeypatch.setenv(TOKEN_VARIABLE, "")  # set, but empty: not a server for everybody
    with pytest.raises(BadInputError):
        read_token(None)


def test_without_the_extra_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    err = capsys.readouterr().err
    assert '`pip install "transformers-litelvlm[serve]"`' in err and err.count("\n") == 1


def test_an_address_that_is_taken(capsys, tiny_checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port, "--model", tiny_checkpoint]) == 2
    err = capsys.readouterr().err
    assert f"--port {port}: " in err and "in use" in err and err.count("\n") == 1


def test_an_empty_host_is_not_everybody(capsys, tiny_checkpoint):
    assert main(["serve", "--host", "", "--port", "0", "--model", tiny_checkpoint]) == 2
    err = capsys.readouterr().err
    assert "write 0.0.0.0 if you mean them" in err and err.count("\n") == 1


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "localhost"])
def test_a_printed_address_can_be_opened(host):
    url = httpx.URL(f"http://{in_address(host)}:8000")
    assert (url.host, url.port) == (host, 8000)


@pytest.mark.slow
def test_as_a_process(picture, tiny_checkpoint):
    """A request, a signal, and a log on the standard output that is JSON line by line."""
    options = ("--port", 0, "--model", tiny_checkpoint, "--budget", 4)
    with running_server(*options, **{TOKEN_VARIABLE: "secret"}) as (process, address):
        with httpx.Client(base_url=address, timeout=60) as client:
            request = form(load_rgb_image(picture), ["the red circle"])
            assert client.post("/v1/segment", **request).status_code == 401
            answer = client.post("/v1/segment", headers={"Authorization": "Bearer secret"}, **request)
            assert answer.json()["retained_indices"] and len(answer.json()["retained_indices"][0]) == 4
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["status"] for line in lines] == [200, 401, 200] and err == ""
    assert process.returncode in (0, -signal.SIGTERM)
