"""`litelvlm demo`: what is said before a page is shown. `make test-browser` uses the page."""

import socket
import sys

import pytest

from transformers_litelvlm.cli.main import build_parser, main


def test_defaults():
    args = build_parser().parse_args(["demo"])
    assert (args.host, args.port, args.max_pixels, args.max_sentences) == ("127.0.0.1", 7860, 16_000_000, 16)


def test_without_the_extra_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    err = capsys.readouterr().err
    assert "litelvlm demo needs gradio" in err and '`pip install "transformers-litelvlm[demo]"`' in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "absent/folder/here"], "absent/folder/here"),
        (["--max-pixels", "64000001"], "`max_pixels` must be at most 64000000"),
        (["--budget", "4", "--method", "magic"], "magic"),
        (["--max-pixels", "100"], "refused with these options: `image` has 144 x 144 pixels, more than 100"),
        (["--budget", "3", "--method", "tome"], "refused with these options: `budget` 3 of 144 visual tokens"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 0: "),
    ],
)
def test_what_cannot_be_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--port", "0", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("litelvlm: error: ") and message in err and err.count("\n") == 1


def test_an_address_that_is_taken(capsys, tiny_checkpoint):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["demo", "--port", port, "--model", tiny_checkpoint]) == 2
    err = capsys.readouterr().err
    assert f"--port {port}: " in err and "in use" in err and err.count("\n") == 1
