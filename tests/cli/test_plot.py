"""`litelvlm plot`: one line about what is wrong, or a picture."""

import json
import sys

import pytest

from tests.support.sample_results import sample_results, write_results
from transformers_litelvlm.cli.main import main


@pytest.fixture
def litelvlm(capsys):
    """Run the command: exit code, standard output, standard error."""

    def run(*argv):
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_picture_and_what_is_in_it(litelvlm, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = litelvlm(
        "plot", write_results(tmp_path), "--metric", "ciou", "--output", tmp_path / "new" / "a.png"
    )
    assert (code, err) == (0, "")
    assert "1000 images, 5080 expressions: cIoU of 4 methods" in out and "a.png" in out
    assert (tmp_path / "new" / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "content, what",
    [
        ({"schema": "another"}, "`schema` is 'another', only 'litelvlm-results/1' can be read"),
        ({**sample_results(), "groups": []}, "`groups` holds no results"),
        ({**sample_results(), "groups": sample_results()["groups"][:1]}, "has no pruned runs: measure some"),
        ([], "holds a JSON list instead of an object"),
    ],
)
def test_a_file_that_is_none_of_results(litelvlm, tmp_path, content, what):
    file = write_results(tmp_path, content)
    code, out, err = litelvlm("plot", file, "--output", tmp_path / "a.png")
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert what in err and "results.json" in err and not (tmp_path / "a.png").exists()


def test_what_is_missing(litelvlm, tmp_path, monkeypatch):
    code, _, err = litelvlm("plot", tmp_path / "none.json", "--output", tmp_path / "a.png")
    assert code == 2 and "none.json: no such file; `litelvlm evaluate` writes it" in err
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib" or name.endswith(".quality")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = litelvlm("plot", write_results(tmp_path), "--output", tmp_path / "a.png")
    assert code == 2 and "A plot needs" in err and 'pip install "transformers-litelvlm[benchmark]"' in err
    assert json.loads((tmp_path / "results.json").read_text())["schema"]
