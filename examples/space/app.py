"""A Space of Hugging Face that shows the page of `litelvlm demo`. README.md beside this file says how to upload it."""

import os
from pathlib import Path
from tempfile import mkdtemp

import torch

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.demo.page import build_page, page_options
from transformers_litelvlm.demo.running import describe_model, make_comparer
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation
from transformers_litelvlm.serving.limits import Limits


# A variable of the Space: the name of a checkpoint on the Hub that writes masks. Without it, the bundled one.
CHECKPOINT = os.environ.get("LITELVLM_CHECKPOINT") or None
# The setting that the page starts with.
PRESET = "balanced"

source = CHECKPOINT or DEFAULT_CHECKPOINT
config = config_for_segmentation(source)
config.set_pruning(pruning_preset=PRESET)
model, processor = load_for_segmentation(source, config)
device = "cuda" if torch.cuda.is_available() else "cpu"

limits = Limits(max_request_mb=10, max_sentences=8)
comparer = make_comparer(model.to(device), processor, CHECKPOINT, limits)
page = build_page(comparer, describe_model(comparer), Path(mkdtemp()))

if __name__ == "__main__":
    page.launch(**page_options(limits))
