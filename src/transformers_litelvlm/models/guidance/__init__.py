"""Guidance: what the sentences and the vision tower say about each visual token."""
