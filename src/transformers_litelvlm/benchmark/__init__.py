"""Time and memory, pruned against unpruned, side by side: `python -m transformers_litelvlm.benchmark`."""
