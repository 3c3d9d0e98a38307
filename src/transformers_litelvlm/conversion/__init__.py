"""Turning published checkpoints into ours: sources, renaming, streaming writer. Family facts live in `models/`."""
