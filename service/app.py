"""The application: opens what it needs when it starts, hands it to the routes by name, closes it in order.

Nothing connects at import. `serve` runs it; tests run it on a socket of their own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from jobs import bus as streams
from jobs import redis_server
from jobs.paths import DataRoot
from jobs.settings import Settings
from service import bodies, pages, problems, routes, uploads
from service.access import Access
from service.conversation import OpenSockets
from service.dispatch import Dispatch
from service.feed import Feeds
from service.hub import Hub
from service.links import Links
from service.notify.notifier import Notifier
from service.notify.outgoing import Outgoing
from service.reconcile import Reconciler
from service.recorder import Recorder
from service.rows import RowFiles
from service.store import Store

_BY_NAME = (
    "settings", "root", "store", "recorder", "hub", "feeds", "bus", "dispatch", "reconciler", "sockets", "links",
    "row_files", "notifier", "webhooks",
)  # fmt: skip
"""What a handler gets by naming a parameter so; `_lifespan` puts them into the application's state."""

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


def create_app(settings: Settings) -> Litestar:
    """The service for one data root."""
    handlers = [*routes.HANDLERS, *routes.HEALTH]
    app = Litestar(
        route_handlers=[
            *pages.handlers(),
            *routes.HEALTH,
            Router("/api", route_handlers=handlers),
            Router("/api/training", route_handlers=handlers, include_in_schema=False),
        ],
        dependencies={name: _from_state(name) for name in _BY_NAME},
        lifespan=[_lifespan(settings, Outgoing(settings.outgoing_networks))],
        exception_handlers=problems.HANDLERS,
        request_max_body_size=bodies.JSON_MAX_BYTES,
        openapi_config=_openapi(),
        logging_config=None,
    )
    app.asgi_handler = Access(app.asgi_handler, settings)  # around the routing: 401 comes before 404
    return app


def database_file(settings: Settings, root: DataRoot) -> Path:
    """Where the truth lies: below the data root, or where the setting says when that is a network's."""
    return Path(settings.database).resolve() if settings.database else root.database


def _lifespan(settings: Settings, outgoing: Outgoing) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        root = DataRoot(settings.data_folder)
        root.folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(uploads.remove_unfinished, root)
        store = await Store.open(database_file(settings, root))
        bus = streams.connect(redis_server.address(settings))
        hub = Hub()
        recorder = Recorder(settings, root, store, hub, bus)
        reconciler = Reconciler(settings, root, recorder, bus)
        links = await asyncio.to_thread(Links.open, settings, root)
        dispatch = Dispatch(settings, root, store, recorder, hub, reconciler)
        notifier = Notifier(store, recorder, hub, outgoing)
        app.state.update(
            {
                "settings": settings, "root": root, "store": store, "recorder": recorder,
                "hub": hub, "feeds": Feeds(store, hub), "bus": bus, "dispatch": dispatch, "reconciler": reconciler,
                "sockets": OpenSockets(), "links": links, "row_files": RowFiles(root), "notifier": notifier,
                "webhooks": notifier.webhooks,
            }
        )  # fmt: skip
        try:
            await recorder.start()
            await reconciler.start()
            await notifier.start()
            yield
        finally:
            hub.close()
            await notifier.stop()
            await reconciler.stop()
            await recorder.stop()
            await bus.close()
            await store.close()

    return lifespan


def _from_state(name: str) -> Provide:
    def provide(state: State) -> Any:
        return state[name]

    return Provide(provide, sync_to_thread=False)


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Training API",
        version=pages.program_version(),
        description="Fine-tune vision-language models on SAM2 annotation exports. "
        "Everything below /api answers below /api/training too.",
        path="/schema",
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        use_handler_docstrings=True,
    )
