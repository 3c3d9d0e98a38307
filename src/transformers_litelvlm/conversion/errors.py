"""The error of a conversion that cannot be done."""


class ConversionError(ValueError):
    """What is wrong with a source or a target: one line that names the file or key, and the way out."""


def shortened(names: list[str], shown: int = 3) -> str:
    """The first few of many names, and how many there are: `a, b, c, ... (12 in all)`."""
    listed = ", ".join(names[:shown])
    return listed if len(names) <= shown else f"{listed}, ... ({len(names)} in all)"
