"""Time and memory, pruned against unpruned, side by side: `litelvlm benchmark`."""
