"""Names of checkpoints and data sets that are no folder: what cannot be fetched is said at once.

The client of the Hub retries every file for half a minute, and says last, if at all, that there is no connection.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name

from transformers_litelvlm.utils.messages import quoted


# Seconds. The client's own limit holds for each address of the Hub in turn.
_PATIENCE = 4.0
_HOW_HUB_NAMES_LOOK = "A repository on the Hub is named ORGANISATION/NAME"
_CONVERTED = ("glamm", "lisa", "unipixel")


def check_no_missing_path(source: str | os.PathLike) -> None:
    """Refuse what is there neither as a file or folder, nor can be the name of a repository; the Hub is not asked.

    Raises:
        FileNotFoundError: names it.
    """
    name = os.fspath(source)
    if os.path.exists(name):
        return
    is_path = isinstance(source, os.PathLike) or name.startswith((".", "/", "~")) or name.endswith("/")
    known = next((known for known in _CONVERTED if known in os.path.basename(name).lower()), None)
    make = f" `litelvlm convert {known} SOURCE FOLDER` makes one of published weights." if known else ""
    if is_path or os.sep in name.replace("/", "") or name.count("/") > 1:
        raise FileNotFoundError(f"{quoted(name)} does not exist: check the path. {_HOW_HUB_NAMES_LOOK}.{make}")
    if "/" not in name:
        raise FileNotFoundError(f"There is no folder {quoted(name)} here. {_HOW_HUB_NAMES_LOOK}.{make}")


def check_source(source: str | os.PathLike, kind: str = "model", file: str = "config.json") -> None:
    """Refuse what is neither there nor can be had from the Hub or its cache, within seconds.

    Args:
        source: folder, file, or name of a repository on the Hub.
        kind: of the repository, `"model"` or `"dataset"`.
        file: that is asked for; it need not exist.

    Raises:
        FileNotFoundError: there is no such file or folder, and it is no name of a repository.
        ConnectionError: the Hub cannot be reached, or, offline, its cache does not have it.
    """
    check_no_missing_path(source)
    name = os.fspath(source)
    if os.path.exists(name):
        return
    has_copy = is_cached(name, kind)
    if constants.HF_HUB_OFFLINE:
        reason = None if has_copy else "HF_HUB_OFFLINE is set, and the cache does not have it"
    else:
        reason = _why_unreachable(hf_hub_url(name, file, repo_type=kind))
    if reason is not None:
        way_out = "use the copy in the cache with HF_HUB_OFFLINE=1" if has_copy else "give the folder of a download"
        raise ConnectionError(
            f"There is no folder {quoted(name)} here, and the Hub cannot be asked for it: {reason}. Check the"
            f" connection, or {way_out}."
        )


def check_loadable(source: str | os.PathLike, **where: Any) -> None:
    """As [`check_source`] for what `from_pretrained` is to load, which may be in a cache: then nothing is asked.

    Args:
        source: folder, or name of a repository on the Hub.
        where: keywords of `from_pretrained`; `cache_dir` and `local_files_only` are heeded.
    """
    check_no_missing_path(source)
    name = os.fspath(source)
    if not (os.path.exists(name) or where.get("local_files_only") or is_cached(name, cache=where.get("cache_dir"))):
        check_source(name)


def is_cached(name: str, kind: str = "model", cache: str | os.PathLike | None = None) -> bool:
    """Whether the cache, by default that of the Hub's client, has something of a repository."""
    return Path(cache or constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind)).is_dir()


def _why_unreachable(url: str) -> str | None:
    """`None` if the Hub answers, whatever it says."""
    reason: list[str | None] = [f"no answer within {_PATIENCE:.0f} seconds"]

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=_PATIENCE)
        except HfHubHTTPError:
            pass
        except Exception as error:  # of its HTTP library, of the system, of what is in between
            reason[0] = " ".join(str(error).split()) or type(error).__name__
            return
        reason[0] = None

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no limit
    asking.start()
    asking.join(_PATIENCE)
    return reason[0]
