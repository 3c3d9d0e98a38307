"""A pickle of references is data: whatever else it is, it is refused before anything runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import pytest

from transformers_litelvlm.data.restricted_pickle import RefusedPickleError, load_plain_pickle


class Runs:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_program_is_refused_and_not_run(tmp_path, protocol):
    marker = tmp_path / "it ran"
    data = [{"ref_id": 1, "sentences": [{"sent": Runs(str(marker))}]}]
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(data, protocol))
    with pytest.raises(RefusedPickleError, match=r"refs\(unc\)\.p was refused: it asks for `\w+\.mkdir`"):
        load_plain_pickle(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # what an ordinary unpickler does with it
    assert marker.exists()


@pytest.mark.parametrize("value", [OrderedDict(a=1), ValueError("x"), print, Runs])
def test_harmless_objects_are_refused_too(tmp_path, value):
    (tmp_path / "x.p").write_bytes(pickle.dumps([value]))
    with pytest.raises(RefusedPickleError):
        load_plain_pickle(tmp_path / "x.p")


def test_text_that_python_2_wrote_is_read(tmp_path):
    # pickle.dumps([{'sent': 'caf\xc3\xa9'}, {'sent': 'caf\xe9'}], 0), str being bytes in Python 2.
    for raw in (rb"caf\xc3\xa9", rb"caf\xe9"):
        (tmp_path / "x.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'" + raw + b"'\np3\nsa.")
        assert load_plain_pickle(tmp_path / "x.p") == [{"sent": "café"}]


DAMAGED = [b"", b"not a pickle", pickle.dumps([{"a": 1}] * 50)[:-20], pickle.dumps(1) + pickle.dumps(Runs("x"))]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "x.p").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.p is not a readable pickle"):
        load_plain_pickle(tmp_path / "x.p")
