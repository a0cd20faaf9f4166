"""Links to exports: plain ones, or with the setting `export_link_h` signed ones that end.

Opened by the app's lifespan; used by `routes/exports`. Source of the signature: RFC 2104, with SHA-256.
"""

import hashlib
import hmac
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from jobs.errors import LinkExpired, UnknownExport
from jobs.paths import DataRoot
from jobs.settings import Settings

_KEY_BYTES = 32


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Where an export is had, and until when; None is for ever."""

    url: str
    expires_at: datetime | None


class Links:
    """Makes and judges links; `key` is None where they have no end."""

    def __init__(self, key: bytes | None, lifetime_h: float | None) -> None:
        self._key = key
        self._lifetime_h = lifetime_h

    @classmethod
    def open(cls, settings: Settings, root: DataRoot) -> "Links":
        """With the key of the data root, so that links outlive a restart."""
        return cls(None if settings.export_link_h is None else _key(root.link_key), settings.export_link_h)

    def make(self, prefix: str, export_id: str) -> Link:
        """A link under the prefix its client uses."""
        url = f"{prefix}/export/download_file/{export_id}"
        if self._key is None or self._lifetime_h is None:
            return Link(url=url, expires_at=None)
        expires = int(time.time() + self._lifetime_h * 3600)
        signature = _signature(self._key, export_id, expires)
        expires_at = datetime.fromtimestamp(expires, UTC)
        return Link(url=f"{url}?expires={expires}&signature={signature}", expires_at=expires_at)

    def check(self, export_id: str, expires: int | None, signature: str | None) -> None:
        """Raises UnknownExport for a link that is not ours, LinkExpired for one beyond its time."""
        if self._key is not None:
            right = _signature(self._key, export_id, expires)
            if not hmac.compare_digest((signature or "").encode(), right.encode()):
                raise UnknownExport("The link is not one of ours: ask for one at /api/export/{job_id}/download.")
        if expires is not None and time.time() > expires:
            raise LinkExpired


def _signature(key: bytes, export_id: str, expires: int | None) -> str:
    return hmac.new(key, f"{export_id} {expires}".encode(), hashlib.sha256).hexdigest()


def _key(path: Path) -> bytes:
    """The random key in a file that its owner alone may read; made where there is none."""
    if not path.exists():
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        part.rename(path)
    return path.read_bytes()
