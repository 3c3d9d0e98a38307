"""Picklescan as a second opinion: what it calls dangerous is refused, and what we accept it finds harmless."""

from __future__ import annotations

import collections
import functools
import io
import operator
import pickle
import runpy
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from picklescan.scanner import SafetyLevel, scan_bytes

from tests.support import attacks
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.weight_files import read_metadata
from transformers_litelvlm.data.restricted_pickle import RefusedPickleError, load_plain_pickle


REFS = [{"ref_id": 1, "split": "val", "sentences": [{"sent": "a café", "tokens": ["a", "café"], "sent_id": 3}]}]
WEIGHTS = {"a": torch.ones(2, 3), "b": torch.arange(4), "c": torch.ones(2).half()}


class By:
    """Unpickled by a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def written(*opcodes: bytes) -> bytes:
    return b"".join(opcodes)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


# What each would do, given the path of a folder to make.
HOSTILE = {
    "os.system": lambda p: pickle.dumps(By(__import__("os").system, f"mkdir {p}")),
    "subprocess": lambda p: pickle.dumps(By(subprocess.call, ["mkdir", p])),
    "builtins.eval": lambda p: pickle.dumps(By(eval, f"__import__('os').mkdir({p!r})")),
    "builtins.exec in old text": lambda p: (
        b"c__builtin__\nexec\n(S'import os; os.mkdir(\"" + p.encode() + b"\")'\ntR."
    ),
    "runpy": lambda p: pickle.dumps(By(runpy._run_code, f"import os; os.mkdir({p!r})", {})),
    "partial": lambda p: pickle.dumps(By(functools.partial, print, p)),
    "methodcaller": lambda p: pickle.dumps(By(operator.methodcaller, "mkdir", p)),
    "attrgetter": lambda p: pickle.dumps(By(operator.attrgetter, "system")),
    "torch.load": lambda p: pickle.dumps(By(torch.load, p)),
    "pickle.loads": lambda p: pickle.dumps(By(pickle.loads, pickle.dumps(attacks.Runs(p)))),
    "an instance": lambda p: b"(S'" + p.encode() + b"'\nios\nmkdir\n.",
    "an object": lambda p: written(b"\x80\x02(cos\nmkdir\n", text(p), b"o."),
    "a new object": lambda p: written(b"\x80\x02cos\nmkdir\n(", text(p), b"t\x81."),
    "names by the stack": lambda p: written(b"\x80\x04", text("os"), text("mkdir"), b"\x93", text(p), b"\x85R."),
    "names by the memo": lambda p: attacks._stack_global(b"os", b"mkdir", p.encode()),
    "names by text memo": lambda p: written(
        b"\x80\x04", text("os"), b"p7\n0", text("mkdir"), b"p9\n0g7\ng9\n\x93", text(p), b"\x85R."
    ),
    "a name within a name": lambda p: written(b"\x80\x04", text("builtins"), text("__import__"), b"\x93."),
    "an attribute of a module": lambda p: b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93.",
    "behind plain data": lambda p: pickle.dumps([*REFS, {"sent": attacks.Runs(p)}]),
    "inside a key": lambda p: pickle.dumps({("a", By(print, p)): 1}),
    "a call that never ends": lambda p: written(b"\x80\x02cos\nmkdir\n", text(p), b"\x85R0K\x01."),
    "an array of objects": lambda p: attacks._numpy_objects(p),
    "a state that is set": lambda p: written(b"\x80\x02ccollections\nOrderedDict\n)R}", text("x"), text(p), b"sb."),
    "a registered extension": lambda p: b"\x80\x02\x82\x01.",
    "a persistent id": lambda p: b"\x80\x02" + text(p) + b"Q.",
    "behind a first pickle": lambda p: pickle.dumps(7) + pickle.dumps(attacks.Runs(p)),
    "damaged behind the call": lambda p: pickle.dumps(attacks.Runs(p), 2)[:-1] + b"\xff\xff",
}
HARMLESS = {
    **{f"references in protocol {number}": lambda p, n=number: pickle.dumps(REFS, n) for number in range(6)},
    "texts of Python 2": lambda p: b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa.",
    "sets and tuples": lambda p: pickle.dumps(({1, 2}, frozenset("ab"), b"x", 2**70, None, 1.5)),
}
STATES = {
    "weights": lambda p: attacks._torch_file(WEIGHTS),
    "weights in the old format": lambda p: attacks._torch_file(WEIGHTS, zipped=False),
    "ordered weights": lambda p: attacks._torch_file(collections.OrderedDict(WEIGHTS)),
}


def opinion(content: bytes, ending: str) -> tuple[bool, bool]:
    """Whether picklescan finds it dangerous, and whether it finds it harmless."""
    try:
        found = scan_bytes(io.BytesIO(content), f"x{ending}", ending)
    except zipfile.BadZipFile:
        return False, False
    is_harmless = all(one.safety is SafetyLevel.Innocuous for one in found.globals) and not found.scan_err
    return found.issues_count > 0, is_harmless


def accepts(load, error, path: Path, ending: str) -> bool:
    """Whether `load` takes the file: only what picklescan finds harmless, and nothing that it finds dangerous."""
    dangerous, harmless = opinion(path.read_bytes(), ending)
    try:
        load(path)
    except error as refused:
        assert str(path) in str(refused)
        return False
    assert harmless and not dangerous
    return True


@pytest.mark.parametrize("name", [*HOSTILE, *HARMLESS])
def test_references(tmp_path, name):
    canary, path = tmp_path / "executed", tmp_path / "refs(unc).p"
    content = (HOSTILE | HARMLESS)[name](str(canary))
    path.write_bytes(content)
    assert accepts(load_plain_pickle, ValueError, path, ".pkl") == (name in HARMLESS) and not canary.exists()


@pytest.mark.parametrize("name", [*HOSTILE, *STATES, *attacks.PICKLES])
def test_weights(tmp_path, name):
    canary, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    if name in attacks.PICKLES:
        content = attacks.PICKLES[name](WEIGHTS, canary)
    else:
        content = (HOSTILE | STATES)[name](str(canary))
    path.write_bytes(content)
    assert accepts(read_metadata, ConversionError, path, ".bin") == (name in STATES) and not canary.exists()


def test_picklescan_has_an_opinion():
    """It does see most of what is hostile here: otherwise agreeing with it would say little."""
    dangerous = {name for name, content in HOSTILE.items() if opinion(content("x"), ".pkl")[0]}
    assert len(dangerous) >= 18, sorted(set(HOSTILE) - dangerous)
    assert not any(opinion(content("x"), ".pkl")[0] for content in HARMLESS.values())
    assert all(opinion(content("x"), ".bin") == (False, True) for content in STATES.values())


def test_an_array_is_refused_though_it_is_harmless(tmp_path):
    """The reader of references takes plain data alone."""
    path = tmp_path / "x.p"
    path.write_bytes(pickle.dumps(np.arange(3)))
    with pytest.raises(RefusedPickleError, match="it asks for `numpy"):
        load_plain_pickle(path)
