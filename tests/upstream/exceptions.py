"""What the stock class passes and ours do not, with the reason. One that passes is reported as a failure, too."""

from __future__ import annotations

from fnmatch import fnmatchcase


# Patterns of "case-setting-test" -> reason.
EXCEPTIONS: dict[str, str] = {}


def reason_for(case: str, name: str) -> str | None:
    found = [reason for pattern, reason in EXCEPTIONS.items() if fnmatchcase(f"{case}-{name}", pattern)]
    return found[0] if found else None
