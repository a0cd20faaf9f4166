"""What is known of a model without loading it: its own config.json, else what is written down of well-known names.

The service asks it for a model's family and dimensions, the runner to say what suits a chosen model.
"""

from pathlib import Path
from typing import Any

import msgspec

from jobs.model_shapes import known_config
from jobs.models import ModelSource, Origin

_MAX_BYTES = 2**20


def config_of(source: ModelSource) -> dict[str, Any] | None:
    """A model's config; None where its files are not here and its name is not well known, or where it is no JSON."""
    if source.origin is not Origin.FOLDER:
        return known_config(source.location) or known_config(source.name)
    try:
        with Path(source.location, "config.json").open("rb") as file:
            config: dict[str, Any] = msgspec.json.decode(file.read(_MAX_BYTES), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # whoever loads it says what is wrong with it
    return config


def family_of(source: ModelSource) -> str | None:
    """The `model_type` of a model's config; None where that is not known, as above."""
    family = (config_of(source) or {}).get("model_type")
    return family if isinstance(family, str) else None
