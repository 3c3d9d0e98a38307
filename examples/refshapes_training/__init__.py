"""Helpers of `train_refshapes.py`: one module per stage of the training of the embedded RefShapes checkpoint."""
