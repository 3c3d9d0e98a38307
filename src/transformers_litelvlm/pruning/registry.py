"""Names of pruning methods: of this package, of installed packages, and of whatever else was imported."""

from __future__ import annotations

import difflib
import importlib.metadata
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

from transformers_litelvlm.pruning.base import Pruner
from transformers_litelvlm.pruning.options import check_types


ENTRY_POINTS = "litelvlm.pruners"  # the group
BUNDLED = "bundled"


class Registered(NamedTuple):
    """A method, and who provides it: `bundled`, a distribution and its version, what was imported."""

    cls: type[Pruner]
    provided_by: str


class BrokenEntryPoint(NamedTuple):
    """An entry point of an installed package that does not give a method."""

    name: str
    distribution: str  # name and version
    reason: str
    error: BaseException


_REGISTRY: dict[str, Registered] = {}
_LOADED: dict[tuple[str, str, str], BrokenEntryPoint | None] = {}
_LOADING = threading.RLock()
_PROVIDER: ContextVar[str | None] = ContextVar("provider", default=None)


def register_pruner(name: str) -> Callable[[type[Pruner]], type[Pruner]]:
    """Class decorator that makes a [`Pruner`] available under `name`. Open to third parties.

    Raises:
        ValueError: if the name is taken by another class or is not a lower-case identifier, or if what is decorated is
            no [`Pruner`], or has a name already.
    """

    if not isinstance(name, str) or not name.isidentifier() or name != name.lower():
        raise ValueError(f"`name` of a pruning method must be a lower-case identifier, got {name!r:.80}.")

    def register(cls: type[Pruner]) -> type[Pruner]:
        if not (isinstance(cls, type) and issubclass(cls, Pruner)):
            raise ValueError(f"The pruning method {name!r} must be a subclass of TokenPruner or LayerPruner.")
        is_bundled = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        provider = BUNDLED if is_bundled else _PROVIDER.get() or f"module {cls.__module__}"
        known = _REGISTRY.get(name)
        # A class that is defined again under the same name (module reload, notebook) replaces itself.
        if known is not None and _origin(known.cls) != _origin(cls):
            raise ValueError(
                f"The method {name!r} is already registered by {known.cls.__qualname__} ({known.provided_by}): "
                f"{cls.__qualname__} ({provider}) needs another name."
            )
        if any(other.cls is cls and taken != name for taken, other in _REGISTRY.items()):
            raise ValueError(
                f"{cls.__qualname__} is the method {cls.name!r} already: register a subclass as {name!r}."
            )
        cls.name = name
        _REGISTRY[name] = Registered(cls, provider)
        return cls

    return register


def list_pruners() -> list[str]:
    """Names of the registered methods, sorted, with those of installed packages."""
    _load_entry_points()
    return sorted(_REGISTRY)


def get_pruner(name: str) -> type[Pruner]:
    """The class registered under `name`, if need be by an installed package.

    Raises:
        ValueError: if there is none; the message lists the known names. If it is that of an installed package that
            does not load, the cause is attached.
    """
    if name not in _REGISTRY:
        _load_entry_points(name)
        if name not in _REGISTRY:
            raise _unknown(name)
    return _REGISTRY[name].cls


def provider_of(name: str) -> str:
    """Who provides a method: `bundled`, a distribution (`NAME VERSION`), `--import SOURCE`, or `module NAME`."""
    get_pruner(name)
    return _REGISTRY[name].provided_by


def broken_entry_points() -> list[BrokenEntryPoint]:
    """Those of installed packages that do not give a method."""
    _load_entry_points()
    return [broken for broken in _LOADED.values() if broken is not None]


def build_pruner(name: str, **options: Any) -> Pruner:
    """An instance of the method registered under `name`.

    Raises:
        ValueError: for an unknown method or an option it does not have, the message lists the known ones; for an
            option of another type than its field has.
    """
    cls = get_pruner(name)
    unknown = sorted(set(options) - set(cls.option_names()))
    if unknown:
        known = ", ".join(cls.option_names()) or "none"
        raise ValueError(
            f"`method_options` {unknown!r:.80} do not exist for the method {name!r}. Its options: {known}."
        )
    try:
        pruner = cls(**options)
    except TypeError:  # it used a value before checking it
        check_types(cls, options)
        raise
    check_types(cls, options)
    return pruner


@contextmanager
def provided_by(provider: str) -> Iterator[None]:
    """Who registers methods inside the `with` block. If it fails, none of them stays."""
    before, token = set(_REGISTRY), _PROVIDER.set(provider)
    try:
        yield
    except BaseException:
        for name in set(_REGISTRY) - before:
            if _REGISTRY[name].provided_by == provider:
                del _REGISTRY[name]
        raise
    finally:
        _PROVIDER.reset(token)


def credit(module: str, provider: str) -> bool:
    """Name the provider of what a module, and those below it, registered before: it was imported already.

    Returns:
        Whether the module, or `provider`, registered anything at all.
    """
    found = False
    for name, known in _REGISTRY.items():
        is_its_own = f"{known.cls.__module__}.".startswith(f"{module}.")
        if is_its_own and known.provided_by == f"module {known.cls.__module__}":
            _REGISTRY[name] = known._replace(provided_by=provider)
        found = found or is_its_own or known.provided_by == provider
    return found


def explain(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def provider_at_fault(error: BaseException) -> str | None:
    """Who provides the method whose code an error went through; `None` if it was in no code but that of this package
    and its libraries."""
    providers = {known.cls.__module__: known.provided_by for known in _REGISTRY.values()}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        provider = providers.get(frame.f_globals.get("__name__", ""), BUNDLED)
        if provider != BUNDLED:
            return provider
    return None


def _origin(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _load_entry_points(wanted: str | None = None) -> None:
    """Load those that were not tried yet; if a method is wanted, its namesake first, and no more than needed.

    This imports code of installed packages, so it is done when a name is missing or methods are listed, no sooner.
    """
    with _LOADING:
        try:
            entries = list(importlib.metadata.entry_points(group=ENTRY_POINTS))
        except Exception as error:  # a file of any installed package that cannot be read
            _LOADED["", "", ""] = BrokenEntryPoint("", "an installed package", explain(error), error)
            return
        for entry in sorted(entries, key=lambda entry: (entry.name != wanted, entry.name)):
            if wanted in _REGISTRY:
                return
            distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
            key = (distribution, entry.name, entry.value)
            if key not in _LOADED:
                _LOADED[key] = None  # what is imported may ask for a method itself
                _LOADED[key] = _load(entry, distribution)


def _load(entry: importlib.metadata.EntryPoint, distribution: str) -> BrokenEntryPoint | None:
    try:
        with provided_by(distribution):
            found = entry.load()
            if isinstance(found, type) and issubclass(found, Pruner):
                if all(known.cls is not found for known in _REGISTRY.values()):
                    register_pruner(entry.name)(found)
            elif not isinstance(found, ModuleType):
                raise ValueError(f"{entry.value} is neither a subclass of Pruner nor a module that registers some.")
            if not credit(entry.module, distribution):
                raise ValueError(f"{entry.value} registers no pruning method.")
    except (Exception, SystemExit) as error:
        return BrokenEntryPoint(entry.name, distribution, explain(error), error)
    return None


def _unknown(name: str) -> ValueError:
    """The error for a method that is not there, with its cause if an installed package should have it."""
    broken = [entry for entry in _LOADED.values() if entry is not None]
    for entry in broken:
        if entry.name == name:
            error = ValueError(
                f"The pruning `method` {name!r:.80} does not load: entry point {entry.name!r:.80} of "
                f"{entry.distribution}: {entry.reason}"
            )
            error.__cause__ = entry.error
            return error
    also = "".join(
        f" Not loaded: entry point {entry.name!r:.80} of {entry.distribution}: {entry.reason}" for entry in broken
    )
    close = difflib.get_close_matches(str(name), _REGISTRY, 1, cutoff=0.8)
    near = "".join(f" Did you mean {match!r}?" for match in close)
    return ValueError(
        f"Unknown pruning `method` {name!r:.80}.{near} Known methods: {', '.join(sorted(_REGISTRY))}; `litelvlm "
        f"methods` describes them. It is not bundled: "
        f"install the package that provides it (by an entry point {ENTRY_POINTS!r}), or import the module that "
        f"registers it first (`--import FILE_OR_MODULE` on the command line).{also}"
    )
