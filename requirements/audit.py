"""`make audit`: looks the locked versions up in the database of known vulnerabilities, and says so where it could not.

pip-audit ends with "No known vulnerabilities found" and exit code 0 also where the database knew none of the packages,
as on an index that mirrors files alone. So one version that is known to be vulnerable is looked up as well: only where
that is found has anything been audited.

Exit codes: 0 nothing was found, or nothing could be audited because the database is out of reach (which is printed);
1 vulnerabilities, or packages that the database lacks; 2 pip-audit failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


LOCK = Path(__file__).with_name("locked.txt")
KNOWN = ("flask", "0.5")  # vulnerable (PYSEC-2018-66), and nothing that we need
NETWORK_ERRORS = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError", "NameResolutionError")


def main() -> int:
    """Runs pip-audit on the lock and judges what it says."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, report = Path(folder, "requirements.txt"), Path(folder, "report.json")
        requirements.write_text(LOCK.read_text(encoding="utf-8") + f"{'=='.join(KNOWN)}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        command += ["-r", str(requirements), "-f", "json", "-o", str(report)]
        run = subprocess.run(command, capture_output=True, text=True)
        dependencies = json.loads(report.read_text())["dependencies"] if report.exists() else None
    code, text = judge(dependencies, run.stderr)
    print(text)
    return code


def judge(dependencies: list[dict[str, Any]] | None, errors: str) -> tuple[int, str]:
    """
    Exit code and text for a report of pip-audit.

    Args:
        dependencies: What it says of each package, `None` where it wrote no report.
        errors: What it wrote to the standard error stream.
    """
    if dependencies is None:
        last = errors.strip().splitlines()[-1] if errors.strip() else "no message"
        if any(name in last for name in NETWORK_ERRORS):
            return 0, f"not audited: the database of vulnerabilities cannot be reached ({last})"
        return 2, f"not audited: pip-audit failed\n{errors}"
    found = {entry["name"]: entry for entry in dependencies}
    if not found.pop(KNOWN[0], {}).get("vulns"):
        return 0, (
            f"not audited: what answers from here knows no vulnerability of {' '.join(KNOWN)}, which has some."
            " A mirror of a package index often has no database of them; run this where the index itself is reached."
        )
    lacking = sorted(name for name, entry in found.items() if "skip_reason" in entry)
    lines = [
        f"{name} {entry['version']}: {' '.join([vulnerability['id'], *vulnerability.get('aliases', [])])},"
        f" fixed in {' '.join(vulnerability['fix_versions']) or 'no release'}"
        for name, entry in sorted(found.items())
        for vulnerability in entry.get("vulns", [])
    ]
    if lacking:
        lines.append(f"not in the database, so not audited: {', '.join(lacking)}")
    if lines:
        return 1, "\n".join(lines)
    return 0, f"{len(found)} locked versions audited: no known vulnerability"


if __name__ == "__main__":
    sys.exit(main())
