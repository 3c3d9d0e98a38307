"""How long the way is from picture and sentence to mask, and that pruning happens once on it."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

import transformers_litelvlm
from tests.support import tiny_llava, tiny_unipixel
from tests.support.families import INSIDE, MODELS, picture
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig


SOURCE = str(Path(transformers_litelvlm.__file__).parent)


class Hops:
    """Counts the calls of functions of this package."""

    def __enter__(self):
        self.calls = Counter()

        def count(frame, event, argument):
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(SOURCE) and not code.co_name.startswith("<"):
                self.calls[code.co_filename.removeprefix(SOURCE + "/"), code.co_qualname] += 1

        sys.setprofile(count)
        return self

    def __exit__(self, *exc):
        sys.setprofile(None)

    @property
    def counts(self):
        return sum(self.calls.values()), len(self.calls), len({file for file, _ in self.calls})


def llava(folder):
    return tiny_llava.tiny_grounding_model().eval(), tiny_llava.tiny_processor(), 5


def unipixel(folder):
    target = tiny_unipixel.tiny_checkpoint(folder)
    model = AutoModelForReferringSegmentation.from_pretrained(target)
    return model.eval(), AutoProcessor.from_pretrained(target), 20


# Measured, so that the way does not grow unnoticed. Of LLaVA's calls, 13 are layers of SAM in chunks, 12 the method
# and its scores, 11 the plan of the shorter prompt; contract and hooks of a family are a function each,
# and eight functions check what comes in and goes out. One keeps a product in float32 under autocast.
@pytest.mark.parametrize("build, limits", [(llava, (153, 118, 27)), (unipixel, (160, 125, 27))])
def test_the_way_to_a_mask_is_short(build, limits, capsys, tmp_path):
    model, processor, budget = build(tmp_path)
    inputs = processor.segmentation_inputs(images=[picture()], expressions=[["the red circle"]])
    model.config.pruning_config = PruningConfig(budget=budget)

    model.segment(**inputs)  # what is computed once
    with Hops() as hops:
        assert len(model.segment(**inputs).masks) == 1
    with capsys.disabled():
        print(f"\n{build.__name__}: {hops.counts} calls, functions, files (at most {limits})")
        for (file, name), count in sorted(hops.calls.items()):
            print(f"  {count:3} {file}: {name}")
    assert all(count <= limit for count, limit in zip(hops.counts, limits, strict=True))


CASES = [(family, "litelvlm", {}) for family in MODELS] + [(family, "fastv", {"layer": 1}) for family in INSIDE]


@pytest.mark.parametrize("family, name, options", CASES, ids=lambda case: getattr(case, "name", None))
def test_pruning_happens_once_per_forward_and_per_generate(family, name, options):
    model = family.model(4)
    model.config.pruning_config = PruningConfig(method=name, budget=12, method_options=options)
    with Hops() as hops, torch.no_grad():
        model(**family.lite_inputs())
    before = {name: count for (_, name), count in hops.calls.items()}
    assert before["prune_prompt"] == 1
    with Hops() as hops, torch.no_grad():
        model.generate(**family.lite_inputs(), max_new_tokens=4, do_sample=False)
    during = {name: count for (_, name), count in hops.calls.items()}
    # A prompt is encoded, planned and shortened once; decoding steps hand their tokens on, without a plan.
    for name in ("choose", "project", "_shorten", "plan_compaction", "prefill"):
        assert during.get(name, 0) == before.get(name, 0), name
