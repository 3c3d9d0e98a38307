"""All files appear, or none."""

import json
import signal
import subprocess
import sys

import pytest

from transformers_litelvlm.utils import files
from transformers_litelvlm.utils.files import check_output, locked, read_json, to_json, write_atomically


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is not readable JSON"):
        read_json(tmp_path / "x.json")


def test_files_appear_at_the_end_and_replace_old_ones(tmp_path):
    target = tmp_path / "a" / "b"
    with write_atomically(target) as staging:
        (staging / "x.txt").write_text("new")
        assert not target.exists()
    with write_atomically(target) as staging:
        (staging / "x.txt").write_text("newer")
        assert (target / "x.txt").read_text() == "new"
    assert (target / "x.txt").read_text() == "newer"
    assert everything_in(tmp_path) == ["a", "a/b", "a/b/x.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_changes_after_an_error(tmp_path, error, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
        (target / "x.txt").write_text("old")
    before = everything_in(tmp_path)
    with pytest.raises(error), write_atomically(target) as staging:
        (staging / "x.txt").write_text("new")
        raise error
    assert everything_in(tmp_path) == before
    assert not exists or (target / "x.txt").read_text() == "old"


def test_a_folder_in_the_way_leaves_nothing_half_done(tmp_path):
    (tmp_path / "out" / "b.txt").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="b.txt"), write_atomically(tmp_path / "out") as staging:
        (staging / "a.txt").write_text("new")
        (staging / "b.txt").write_text("new")
    assert everything_in(tmp_path) == ["out", "out/b.txt"]


KILLED = """
import os, signal, sys
from transformers_litelvlm.utils.files import write_atomically
calls, replace = [], os.replace
def killed(*names):
    calls.append(names)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = killed
with write_atomically(sys.argv[1], one_run=True) as staging:
    if sys.argv[2] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    for name in ("results.json", "results.md", "same.png"):
        (staging / name).write_text("same" if name == "same.png" else "new")
"""


@pytest.mark.parametrize("moved", range(5))
def test_killed_while_files_are_moved(tmp_path, moved):
    """Never new beside old; the next call finishes it, and nothing of the killed process stays."""
    folder = tmp_path / "results"
    with write_atomically(folder, one_run=True) as staging:
        for name in ("results.json", "results.md", "same.png", "only_old.png"):
            (staging / name).write_text("same" if name == "same.png" else "old")
    (folder / "foreign.txt").write_text("mine")
    # The module alone: importing the package takes seconds.
    program = f"import importlib.util as u, sys; s = u.spec_from_file_location('f', {files.__file__!r}); m ="
    program += (
        " u.module_from_spec(s); sys.modules['transformers_litelvlm.utils.files'] = m; s.loader.exec_module(m)\n"
    )
    program = program.replace("\n", "\n") + KILLED.replace(
        "from transformers_litelvlm.utils.files import write_atomically", "write_atomically = m.write_atomically"
    )
    run = subprocess.run([sys.executable, "-c", program, str(folder), str(moved)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    found = {path.read_text() for path in folder.glob("results.*")}
    assert found in ({"old"}, {"new"}, set())
    with write_atomically(folder) as staging:
        (staging / "other.txt").write_text("other")
    ours = ["foreign.txt", "other.txt", "results.json", "results.md", "same.png"]
    if moved == 0:  # nothing was complete
        assert {path.read_text() for path in folder.glob("results.*")} == {"old"}
        ours.insert(1, "only_old.png")
    else:
        assert {path.read_text() for path in folder.glob("results.*")} == {"new"}
    assert everything_in(folder) == [".litelvlm.json", *ours]


def test_what_somebody_still_writes_is_left_alone(tmp_path):
    with write_atomically(tmp_path) as outer:
        (outer / "a.txt").write_text("a")
        with write_atomically(tmp_path) as inner:
            (inner / "b.txt").write_text("b")
        assert (outer / "a.txt").exists()
    assert everything_in(tmp_path) == ["a.txt", "b.txt"]
    with locked(tmp_path / "x") as first, locked(tmp_path / "x") as second:
        assert first and not second


def test_one_run_removes_its_own_files_and_no_others(tmp_path):
    def write(*names):
        with write_atomically(tmp_path / "out", one_run=True) as staging:
            for name in names:
                (staging / name).write_text(name)

    write("a", "b", "changed")
    (tmp_path / "out" / "changed").write_text("by somebody")
    (tmp_path / "outside").write_text("outside")
    path = tmp_path / "out" / ".litelvlm.json"
    listed = json.loads(path.read_text())
    listed["files"] |= {"../outside": listed["files"]["a"], "mine": listed["files"]["a"], "gone": 7}
    path.write_text(json.dumps(listed))
    (tmp_path / "out" / "mine").write_text("mine")
    write("b", "c")
    assert everything_in(tmp_path) == [
        "out",
        "out/.litelvlm.json",
        "out/b",
        "out/c",
        "out/changed",
        "out/mine",
        "outside",
    ]
    for damaged in ("{", "[]", '{"files": 3}'):
        path.write_text(damaged)
        write("c")
    assert "out/b" in everything_in(tmp_path)


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "a.png").mkdir(parents=True)
    (tmp_path / "full").symlink_to("/proc/self")  # a folder that takes no files
    before = everything_in(tmp_path)
    for folder, message in {
        "link": "link is a link to nothing",
        "link/below": "link is a link to nothing",
        "file": "file is a file, not a folder",
        "file/below": "file is a file, not a folder",
        "taken": "a.png is a folder: it cannot be replaced by a file",
        "full": "full cannot be written: ",
        "new/" + "n" * 300: "File name too long",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            check_output(tmp_path / folder, ["a.png"])
        assert len(str(error.value)) < 300
    check_output(tmp_path / "new" / "folder", ["a.png"])
    assert everything_in(tmp_path) == before


def test_json_has_no_nan():
    value = {"a": [float("nan"), (1.5, float("inf"))], "b": {"c": -float("inf"), "d": "NaN"}}
    assert to_json(value) == '{"a": [null, [1.5, null]], "b": {"c": null, "d": "NaN"}}'
