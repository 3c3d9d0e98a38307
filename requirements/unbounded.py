"""Prints the names of what setup.cfg requires, without versions: `make test-newest` installs the newest of each."""

import configparser
import re
import sys
from pathlib import Path


def names(extras: list[str]) -> list[str]:
    """The requirements of the package and of its `extras`."""
    parser = configparser.ConfigParser()
    parser.read(Path(__file__).resolve().parents[1] / "setup.cfg", encoding="utf-8")
    lines = [parser["options"]["install_requires"], *(parser["options.extras_require"][extra] for extra in extras)]
    return [re.match(r"[\w.-]+", line).group() for line in "\n".join(lines).splitlines() if line]


if __name__ == "__main__":
    print(*names(sys.argv[1:]))
