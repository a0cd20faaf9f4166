"""Every setting of every program: one field, its sentence, its environment variable. Read once at start.

`Settings.from_environment()` is called by each program's `main`; nothing else reads the environment.
The README's table is generated from here (`make docs`).
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec

from jobs.errors import Misconfigured

REFUSED = 2
"""Exit status of a program that will not start as it is set up."""


def _says(sentence: str) -> msgspec.Meta:
    return msgspec.Meta(description=sentence)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can set; every field is `TRAINING_<FIELD>` in the environment, but `REDIS_URL`."""

    data_root: Annotated[str, _says("Folder that holds everything: database, uploads, datasets, jobs, exports.")] = (
        "data"
    )
    database: Annotated[
        str | None,
        _says("File of the database, on a disk of the service's own; `<data root>/training.db` when not given."),
    ] = None
    host: Annotated[str, _says("Address to bind; anything but loopback needs a token.")] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535), _says("Port of the HTTP service.")] = 8000
    token: Annotated[
        str | None,
        _says("Bearer token every request and socket must carry, which the page asks for; none on loopback."),
    ] = None
    token_file: Annotated[str | None, _says("File to read the token from, instead of the environment.")] = None
    allowed_hosts: Annotated[
        tuple[str, ...], _says("Host names clients may use, comma-separated, besides loopback names and `host`.")
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...], _says("Origins of pages elsewhere that may call the API, comma-separated.")
    ] = ()
    redis_url: Annotated[str | None, _says("Redis or Valkey to use; without it an embedded one is started.")] = None
    runner_id: Annotated[str | None, _says("Name of this runner; the host's name when not given.")] = None
    cpu_slots: Annotated[int, msgspec.Meta(ge=1, le=64), _says("Data jobs a runner executes at once.")] = 2
    gpu_slots: Annotated[
        int,
        msgspec.Meta(ge=1, le=64),
        _says("Model jobs at once per GPU, or on the CPU where there is no GPU; as many of them as its memory holds."),
    ] = 1
    memory_budget_gib: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        _says(
            "Memory model jobs may use together on a device that no driver measures: the CPU, or an integrated GPU. "
            "All of the host's when not given."
        ),
    ] = None
    model_roots: Annotated[
        tuple[str, ...],
        _says("Further folders that may hold models, comma-separated; `<data_root>/models` always may."),
    ] = ()
    report_every_s: Annotated[
        float, msgspec.Meta(gt=0), _says("How often a runner reports, and the service reconciles.")
    ] = 2.0
    lease_s: Annotated[float, msgspec.Meta(gt=0), _says("Silence after which a runner counts as lost.")] = 15.0
    stop_grace_s: Annotated[
        float, msgspec.Meta(gt=0), _says("Time a job gets to save and end before it is killed.")
    ] = 30.0
    hang_after_s: Annotated[
        float,
        msgspec.Meta(gt=0),
        _says("Silence after which work with a model counts as hung; twenty of its steps where those take longer."),
    ] = 600.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1), _says("Attempts a job gets before it fails.")] = 3
    sync_wait_s: Annotated[
        float, msgspec.Meta(ge=0), _says("How long a synchronous data route waits before it answers 202.")
    ] = 600.0
    no_runner_wait_s: Annotated[
        float, msgspec.Meta(ge=0), _says("How long a synchronous route waits for a runner before it answers 503.")
    ] = 5.0
    upload_max_bytes: Annotated[int, msgspec.Meta(ge=1), _says("Largest upload.")] = 2 * 2**30
    expand_max_bytes: Annotated[int, msgspec.Meta(ge=1), _says("Most an archive may expand to.")] = 10 * 2**30
    archive_max_entries: Annotated[int, msgspec.Meta(ge=1), _says("Most files an archive may hold.")] = 50_000
    export_link_h: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        _says("Hours a download link lives after it was asked for; it is signed then. Without end when not given."),
    ] = None
    points_kept_days: Annotated[
        float,
        msgspec.Meta(ge=0),
        _says(
            "Days after a training's end in which each point it logged stays in the database; then the lowest and "
            "highest of each stretch stay, and the journal in its folder keeps all. 0 keeps them for ever."
        ),
    ] = 30.0
    outgoing_networks: Annotated[
        tuple[str, ...],
        _says(
            "Private networks that webhooks may reach, as CIDRs, comma-separated, such as 192.168.0.0/16; "
            "plain http is allowed only there."
        ),
    ] = ()
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _says("debug, info, warning or error.")] = "info"
    hf_offline: Annotated[bool, _says("Never ask a model hub; use only local models.")] = False
    url: Annotated[
        str | None, _says("Service that the terminal's commands talk to; `host` and `port` when not given.")
    ] = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings; an empty variable counts as not given.

        Raises:
            Misconfigured: a value has the wrong form; the message names the variable.
        """
        environment = os.environ if environment is None else environment
        hints = get_type_hints(cls)
        values: dict[str, object] = {}
        for field in cls.__struct_fields__:
            text = environment.get(variable(field), "").strip()
            if text:
                is_list = get_origin(hints[field]) is tuple
                values[field] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        for field, value in values.items():
            try:
                msgspec.convert({field: value}, cls, strict=False)
            except msgspec.ValidationError as error:
                raise Misconfigured(f"{variable(field)}={environment[variable(field)]!r}: {error}") from None
        settings = msgspec.convert(values, cls, strict=False)
        if settings.token is None and settings.token_file:
            return msgspec.structs.replace(settings, token=_read_token(settings.token_file))
        return settings

    def to_environment(self) -> dict[str, str]:
        """The variables that give these settings back: how one program hands them to another."""
        values = {variable(field): getattr(self, field) for field in self.__struct_fields__}
        return {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None
        }

    @property
    def address(self) -> str:
        """Where the service of this host listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def runner_name(self) -> str:
        return self.runner_id or socket.gethostname()

    @property
    def data_folder(self) -> Path:
        return Path(self.data_root).resolve()


def variable(field: str) -> str:
    """The environment variable of a field."""
    return "REDIS_URL" if field == "redis_url" else f"TRAINING_{field.upper()}"


def described() -> list[tuple[str, str, str]]:
    """(variable, default, sentence) of every setting, for the README's table and `--help`."""
    hints = get_type_hints(Settings, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(Settings):
        sentence = next(m.description for m in get_args(hints[field.name])[1:] if m.description)
        default = "" if field.default in (None, ()) else str(field.default)
        rows.append((variable(field.name), default, sentence))
    return rows


def _read_token(path: str) -> str:
    try:
        token = Path(path).read_text().strip()
    except OSError as error:
        raise Misconfigured(f"TRAINING_TOKEN_FILE={path!r} cannot be read: {error.strerror}") from None
    if not token:
        raise Misconfigured(f"TRAINING_TOKEN_FILE={path!r} is empty")
    return token
