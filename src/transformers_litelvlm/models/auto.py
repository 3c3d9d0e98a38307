"""Auto class for models that turn sentences into masks."""

from __future__ import annotations

from collections import OrderedDict

from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


class AutoModelForReferringSegmentation(_BaseAutoModelClass):
    """Loads whichever `...ForReferringSegmentation` class a checkpoint needs, by the `model_type` of its config."""

    # Transformers has no such task: the mapping starts empty, and our models register themselves.
    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
