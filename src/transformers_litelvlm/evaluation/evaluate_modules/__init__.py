"""The scores as modules of the `evaluate` library, one file each, as `evaluate.load(path)` wants them."""
