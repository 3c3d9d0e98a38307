"""Evaluation: scores, statistics, and the files that servers score."""
