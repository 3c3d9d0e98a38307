"""What a checkpoint carries beside its weights: a stub for `trust_remote_code=True`, and a model card.

The stub imports the installed package, so the classes that it gives are the installed ones. If the package is not
installed, Transformers says so before it runs the stub.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedConfig

from transformers_litelvlm.hub.model_card import CARD_NAME, add_tags, write_missing_card
from transformers_litelvlm.models.local_weights import LocalWeightsMixin
from transformers_litelvlm.version import __version__


STUB = "litelvlm_remote"
_STUB_TEXT = '''"""For `trust_remote_code=True`: the classes of this checkpoint, all from an installed package.

    pip install .    # in the repository of transformers-litelvlm; it is not on PyPI

Written by transformers_litelvlm {version}.
"""

{imports}
'''
_HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "revision")

# model_type -> name of an Auto class -> class: every class of a family can read the same folder.
REMOTE_CLASSES: dict[str, dict[str, type]] = {}


def classes_by_type() -> dict[str, dict[str, Any]]:
    """The classes of each family, by the `model_type` of the stock config that it extends, and by its own."""
    known: dict[str, dict[str, Any]] = {}
    for model_type, classes in dict[str, dict[str, Any]](REMOTE_CLASSES).items():
        known |= {classes["AutoConfig"].stock_model_type(): classes, model_type: classes}
    return known


def write_stub(folder: str | os.PathLike, model_type: str) -> dict[str, str]:
    """Write the stub of a family into `folder`; returns the `auto_map` that names its classes."""
    classes = REMOTE_CLASSES[model_type]
    # Families may share a processor, which does not know whose folder it is: the stub has the classes of all of them.
    sharing = [of for of in REMOTE_CLASSES.values() if of["AutoProcessor"] is classes["AutoProcessor"]]
    imports = sorted({f"from {_public_module(cls)} import {cls.__name__}" for of in sharing for cls in of.values()})
    text = _STUB_TEXT.format(version=__version__, imports="\n".join(imports))
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, f"{STUB}.py").write_text(text, encoding="utf-8")
    return {name: f"{STUB}.{cls.__name__}" for name, cls in classes.items()}


def _public_module(cls: type) -> str:
    """The package itself if it exports the class, since modules within it may move."""
    package = cls.__module__.partition(".")[0]
    return package if getattr(sys.modules[package], cls.__name__, None) is cls else cls.__module__


class InstalledCodeMixin:
    """For configs, processors and models whose code is in an installed package."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type | None = None) -> None:
        """Upstream marks a class that a stub gave it, and then copies its source into every checkpoint. Not here."""


class RemoteCodeMixin(LocalWeightsMixin, InstalledCodeMixin):
    """For model classes: `save_pretrained` also writes the stub and a model card, and `push_to_hub` pushes both."""

    config: PreTrainedConfig

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As upstream, in this family's own weight names, and with a model card if the folder has none.

        Args:
            push_to_hub: also upload, see [`push_to_hub`]; `repo_id` defaults to the folder's name. If the repository
                has no card, the one in `save_directory` is its card.
        """
        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        if is_main_process and self.config.model_type in REMOTE_CLASSES:
            self.config.auto_map = write_stub(save_directory, self.config.model_type)
        # Stock names cannot say what the guidance and mask parts are called, so nothing is renamed back to them.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_missing_card(Path(save_directory), self.config)
        if is_main_process and push_to_hub:
            repo_id = hub.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self._upload(repo_id, kwargs, Path(save_directory, CARD_NAME), **hub)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **kwargs: Any) -> Any:
        """As upstream, with this package's model card if the repository has none.

        A card that the repository has remains, with `tags` added. `kwargs` are upstream's: `tags`, `commit_message`,
        `commit_description`, `private`, `token`, `revision`, `create_pr`.
        """
        return self._upload(repo_id, {"max_shard_size": max_shard_size}, **kwargs)

    def _upload(
        self,
        repo_id: str,
        saving: dict[str, Any],
        card: Path | None = None,
        tags: list[str] | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        **commit: Any,
    ) -> Any:
        """Save with the arguments `saving`, with `card` instead of a new one, and upload in one commit."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, repo_id.rpartition("/")[2])  # a new card has its name
            folder.mkdir()
            if card is not None and card.exists():
                shutil.copy(card, folder)
            self.save_pretrained(folder, **saving)
            own = Path(folder, CARD_NAME)
            base = repo_id if api.file_exists(repo_id, CARD_NAME) else own
            add_tags(base, [*(self.model_tags or []), *(tags or [])], own, token)
            return self._upload_modified_files(folder, repo_id, {}, token=token, **commit)
