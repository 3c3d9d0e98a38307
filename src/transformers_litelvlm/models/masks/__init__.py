"""Masks: outputs, and the mask decoders that the states of [SEG] prompt."""
