"""All files appear, or none."""

import pytest

from transformers_litelvlm.utils.files import write_atomically


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


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
