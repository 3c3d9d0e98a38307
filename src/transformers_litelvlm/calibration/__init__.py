"""Calibration: which setting suits a model and its data, found on one split and confirmed on another."""
