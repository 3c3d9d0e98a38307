"""What upstream keeps of a call on the model, kept for each thread: several threads may share a model."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary


class PerThread(threading.local):
    """An attribute of a class whose value each thread sets and reads for itself; `None` until it does."""

    def __init__(self) -> None:  # in each thread
        self._values: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._values.get(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        self._values[instance] = value
