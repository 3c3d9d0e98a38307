"""Checkpoints that carry their code: the modules they need, flattened into the folder, for `trust_remote_code=True`.

Transformers copies one module and what it imports relatively, from one folder. This package is a tree with absolute
imports, so its modules are written under flat names, with `from transformers_litelvlm.a.b import c` rewritten to
`from .litelvlm_a_b import c`. That is the only form in which the package imports itself.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from transformers import PreTrainedConfig

from transformers_litelvlm.utils.files import write_atomically


PACKAGE = "transformers_litelvlm"
_HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "revision")
_CARD = "README.md"
_OWN_IMPORT = re.compile(rf"^(\s*)from {PACKAGE}\.([\w.]+) import", flags=re.MULTILINE)


def flat_name(module: str) -> str:
    """`transformers_litelvlm.pruning.base` -> `litelvlm_pruning_base`."""
    return module.replace(f"{PACKAGE}.", "litelvlm_", 1).replace(".", "_")


def class_reference(cls: type) -> str:
    """What `auto_map` says of a class of this package, or of its copy beside a checkpoint."""
    module = cls.__module__
    flat = flat_name(module) if module.startswith(f"{PACKAGE}.") else module.rsplit(".", 1)[-1]
    return f"{flat}.{cls.__name__}"


def write_code(folder: str | os.PathLike, modules: Iterable[str]) -> None:
    """Write `modules` of this package, and all of it that they import, into `folder`."""
    if not __name__.startswith(PACKAGE):
        # This very file came from a checkpoint: the flat modules are its neighbours.
        for path in Path(__file__).parent.glob("litelvlm_*.py"):
            shutil.copy(path, folder)
        return
    to_do, done = list(modules), set()
    with write_atomically(folder) as staging:
        while to_do:
            module = to_do.pop()
            if module in done:
                continue
            done.add(module)
            source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
            to_do += [f"{PACKAGE}.{imported}" for _, imported in _OWN_IMPORT.findall(source)]
            flat = _OWN_IMPORT.sub(_flat_import, source)
            Path(staging, f"{flat_name(module)}.py").write_text(flat, encoding="utf-8")


def _flat_import(match: re.Match) -> str:
    return f"{match[1]}from .{flat_name(f'{PACKAGE}.{match[2]}')} import"


# model_type -> Auto class -> class: every class of a family can read the same folder.
_AUTO_CLASSES: dict[str, dict[str, type]] = {}


def register_remote_class(model_type: str, auto_class: str, cls: type) -> None:
    """Have checkpoints of a family name `cls` as what `auto_class` loads where the package is absent."""
    _AUTO_CLASSES.setdefault(model_type, {})[auto_class] = cls


def reference_code(config: PreTrainedConfig) -> list[str]:
    """Have the config of a checkpoint name the registered classes of its family; returns the modules to write."""
    classes = _AUTO_CLASSES.get(config.model_type, {})
    references = {name: class_reference(cls) for name, cls in classes.items()}
    config.auto_map = {**(getattr(config, "auto_map", None) or {}), **references}
    return [cls.__module__ for cls in classes.values()]


class RemoteCodeMixin:
    """For model classes: `save_pretrained` writes the code beside the weights, under the registered Auto classes."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModel") -> None:
        """As upstream's, but for the whole family: see [`register_remote_class`]."""
        name = auto_class if isinstance(auto_class, str) else auto_class.__name__
        register_remote_class(cls.config_class.model_type, name, cls)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        save_code: bool = True,
        **kwargs: Any,
    ) -> None:
        """As upstream, in this family's own weight names, and with a model card where the folder has none.

        Args:
            push_to_hub: also upload, see [`push_to_hub`]; `repo_id` defaults to the folder's name. Where the
                repository has no card, the one in `save_directory` is its card.
            save_code: also write the Python modules that `trust_remote_code=True` needs where this package is absent.
        """
        hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
        modules = reference_code(self.config) if save_code else []
        if not save_code and hasattr(self.config, "auto_map"):
            del self.config.auto_map
        # Stock names cannot say what the guidance and mask parts are called, so nothing is renamed back to them.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if not is_main_process:
            return
        if save_code:
            write_code(save_directory, modules)
        _write_missing_card(save_directory, self.config)
        if push_to_hub:
            repo_id = hub.pop("repo_id", os.path.basename(os.fspath(save_directory)))
            self._upload(repo_id, {**kwargs, "save_code": save_code}, Path(save_directory, _CARD), **hub)

    def push_to_hub(
        self, repo_id: str, *, max_shard_size: int | str = "50GB", tags: list[str] | None = None, **kwargs: Any
    ) -> Any:
        """As upstream, with the code, and with this package's model card where the repository has none.

        A card that the repository has stays, with `tags` added. `kwargs` are upstream's: `commit_message`,
        `commit_description`, `private`, `token`, `revision`, `create_pr`.
        """
        return self._upload(repo_id, {"max_shard_size": max_shard_size}, tags=tags, **kwargs)

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
        is_on_hub = api.file_exists(repo_id, _CARD)
        with tempfile.TemporaryDirectory() as folder:
            if card is not None and card.exists():
                shutil.copy(card, folder)
            self.save_pretrained(folder, **saving)
            own = Path(folder, _CARD)
            if is_on_hub or own.exists():
                _add_tags(repo_id if is_on_hub else own, [*(self.model_tags or []), *(tags or [])], own, token)
            return self._upload_modified_files(folder, repo_id, {}, token=token, **commit)


def _write_missing_card(folder: str | os.PathLike, config: PreTrainedConfig) -> None:
    # Imported by name: what a checkpoint carries are the modules that the model needs, and cards are not among them.
    if __name__.startswith(PACKAGE):
        importlib.import_module(f"{PACKAGE}.hub.model_card").write_missing_card(Path(folder), config)


def _add_tags(card_of: str | Path, tags: list[str], file: Path, token: bool | str | None) -> None:
    card = ModelCard.load(card_of, token=token)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *tags])) or None
    card.save(file)
