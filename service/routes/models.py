"""The models one can choose by name: known ones, and folders below the model roots."""

import asyncio

from litestar import get

from jobs import models
from jobs.models import ListedModel, model_roots
from jobs.paths import DataRoot
from jobs.settings import Settings
from service.answers import Answer


class ModelList(Answer, frozen=True, kw_only=True):
    """Any other repository of the model hub is a name, too."""

    models: tuple[ListedModel, ...]


@get("/models", tags=["models"])
async def list_models(settings: Settings, root: DataRoot) -> ModelList:
    """The models known by name, and the folders below the model roots."""
    found = await asyncio.to_thread(models.listed, model_roots(settings, root))
    return ModelList(models=tuple(found))
