"""Compose files, Dockerfiles and docs/deploy.md agree with the project, as far as shows without an engine."""

import contextlib
import fnmatch
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from jobs.settings import Settings, described
from service import access, cli

CHECKOUT = Path(__file__).parents[1]
PAGE = (CHECKOUT / "docs" / "deploy.md").read_text()
COMPOSE = CHECKOUT / "docker-compose.yml"
WITHOUT_GPU = CHECKOUT / "docker-compose.cpu.yml"
DOCKERFILES = ("service/Dockerfile", "gpu_runner/Dockerfile")
OURS = ("service", "gpu_runner")
SETTINGS = {name for name, _, _ in described()}
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
TOKEN = "t0k3n-" + "x" * 32
PINNED = re.compile(r"[a-z/]+:\d+\.\d+\.\d+(-[a-z0-9.-]+)?")
AFTER_GRACE_S = 15  # what a runner takes at most beyond its jobs' grace: to end what is left, and to say so


class _Reader(yaml.SafeLoader):
    """Knows Compose's own tags: what is `!reset` becomes null, what is `!override` stays."""


_Reader.add_constructor("!reset", lambda *_: None)
_Reader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))


def read(path: Path) -> dict[str, Any]:
    """A compose file, with the default of each `${NAME:-default}` in its place."""
    return parse(path.read_text())


def parse(text: str) -> dict[str, Any]:
    return yaml.load(re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text), _Reader)


def instructions(name: str) -> list[tuple[str, str]]:
    """(word, arguments) of a Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (CHECKOUT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word, arguments.strip()) for word, _, arguments in (line.partition(" ") for line in text.splitlines() if line)
    ]


def stages(name: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name; the last one's is empty."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for word, arguments in instructions(name):
        if word == "FROM":
            current = found[arguments.partition(" AS ")[2]] = []
        current.append((word, arguments))
    return found


def copied(stage: list[tuple[str, str]]) -> Iterator[tuple[str, str, str | None]]:
    """(source, target, stage it comes from or None for the checkout) of each COPY."""
    for arguments in (shlex.split(arguments) for word, arguments in stage if word == "COPY"):
        origin = arguments.pop(0).removeprefix("--from=") if arguments[0].startswith("--from=") else None
        *sources, target = arguments
        yield from ((source, target, origin) for source in sources)


def is_ignored(path: str) -> bool:
    """Whether the engine does not get to see it: of `.dockerignore`'s patterns the last that fits a path or one of
    the folders it lies in decides."""
    ignored = False
    names = [*map(str, Path(path).parents), path]
    for line in (CHECKOUT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if pattern and not pattern.startswith("#"):
            forms = (pattern, pattern.removeprefix("**/"))
            if any(fnmatch.fnmatch(name, form) for name in names for form in forms):
                ignored = not line.startswith("!")
    return ignored


def overrides() -> list[str]:
    """The compose files that the page has people write."""
    return re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[tuple[str, ...]]:
    """Every command of ours that the compose file and the Dockerfiles name."""
    checks = [tuple(service["healthcheck"]["test"][1:]) for service in read(COMPOSE)["services"].values()]
    starts = [
        tuple(json.loads(arguments)) for name in DOCKERFILES for word, arguments in instructions(name) if word == "CMD"
    ]
    return sorted(command for command in {*checks, *starts} if command[0] in ("training-api", "python"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read(COMPOSE)


# -- the compose files


def test_every_compose_file_and_override_follows_the_specification(tmp_path: Path) -> None:
    texts = [COMPOSE.read_text(), WITHOUT_GPU.read_text(), *overrides()]
    files = [tmp_path / f"{number}.json" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(json.dumps(parse(text)))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("files", [[COMPOSE], [COMPOSE, WITHOUT_GPU]], ids=["gpu", "cpu"])
def test_compose_itself_takes_the_files(files: list[Path]) -> None:
    if (
        subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
        if shutil.which("docker")
        else 1
    ):
        pytest.skip("docker compose is not here")
    named = [f"--file={file}" for file in files]
    answer = subprocess.run(["docker", "compose", *named, "config", "--format=json"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    runner = json.loads(answer.stdout)["services"]["gpu_runner"]
    assert ("deploy" in runner) is (len(files) == 1)


def test_every_service_is_checked_restarted_and_confined(compose) -> None:
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["init"] is True, name
        assert service["restart"] == "unless-stopped", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_the_service_is_published_and_on_loopback_only(compose) -> None:
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    environment = compose["services"]["service"]["environment"]
    assert ports == {"service": [f"127.0.0.1:8000:{environment['TRAINING_PORT']}"]}


def test_only_the_runner_reserves_gpus_and_without_one_it_reserves_nothing(compose) -> None:
    reserving = [name for name, service in compose["services"].items() if "deploy" in service]
    assert reserving == ["gpu_runner"]
    (device,) = compose["services"]["gpu_runner"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert read(WITHOUT_GPU) == {"services": {"gpu_runner": {"deploy": None}}}
    assert "deploy: !reset" in WITHOUT_GPU.read_text()


def test_service_and_runner_share_one_data_volume_and_every_volume_is_declared(compose) -> None:
    mounted = {
        name: dict(volume.split(":") for volume in service["volumes"]) for name, service in compose["services"].items()
    }
    assert {volume for volumes in mounted.values() for volume in volumes} == set(compose["volumes"])
    for name in OURS:
        assert mounted[name]["data"] == compose["services"][name]["environment"]["TRAINING_DATA_ROOT"]
    assert [name for name, volumes in mounted.items() if "redis" in volumes] == ["valkey"]


@pytest.mark.parametrize("name", OURS)
def test_the_programs_take_the_settings_they_are_given(compose, name: str, tmp_path: Path) -> None:
    environment = compose["services"][name]["environment"]
    assert set(environment) <= SETTINGS
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    settings = Settings.from_environment(environment | {"TRAINING_TOKEN_FILE": str(token_file)})
    access.check_settings(settings)
    assert settings.redis_url == "redis://valkey:6379/0"
    assert "valkey" in compose["services"]


def test_the_token_comes_from_a_secret_that_only_the_service_gets_and_git_ignores(compose) -> None:
    (secret,) = compose["secrets"]
    assert compose["services"]["service"]["environment"]["TRAINING_TOKEN_FILE"] == f"/run/secrets/{secret}"
    assert [name for name, service in compose["services"].items() if "secrets" in service] == ["service"]
    ignored = (CHECKOUT / ".gitignore").read_text().split()
    assert compose["secrets"][secret]["file"].startswith("./secrets/")
    assert {"/secrets/", "/.env"} <= set(ignored)
    assert is_ignored("secrets/training_token")
    assert is_ignored(".env")


def test_the_runner_keeps_its_name_over_containers_and_gets_the_time_to_save(compose) -> None:
    runner = compose["services"]["gpu_runner"]
    assert runner["environment"]["TRAINING_RUNNER_ID"]
    grace_s = float(runner["environment"]["TRAINING_STOP_GRACE_S"])
    assert float(runner["stop_grace_period"].removesuffix("s")) >= grace_s + AFTER_GRACE_S


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_that_is_named_exists(command: tuple[str, ...]) -> None:
    program, *arguments = command
    if program == "python":
        assert arguments[0] == "-m"
        assert find_spec(arguments[1])
    else:
        assert program in PROJECT["project"]["scripts"]
        cli._parser().parse_args(arguments)


# -- the Dockerfiles


@pytest.mark.parametrize("name", DOCKERFILES)
def test_whatever_a_dockerfile_copies_is_there_and_not_hidden_from_the_engine(name: str) -> None:
    built = stages(name)
    for source, target, origin in itertools.chain.from_iterable(map(copied, built.values())):
        if origin is None:
            assert (CHECKOUT / source).exists(), source
            assert not is_ignored(source), source
        else:
            assert origin in built, origin
            assert f"{source.removeprefix('/source/')}/uplot" in (CHECKOUT / "Makefile").read_text()
            assert target == "static/vendor"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_brings_all_that_the_wheel_is_made_of(name: str) -> None:
    targets = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *targets["packages"], *targets["force-include"]}
    assert needed <= {source for source, _, origin in copied(stages(name)["wheel"]) if origin is None}


def test_data_and_secrets_and_what_was_built_here_stay_out_of_images() -> None:
    for path in ("data/training.db", ".venv/bin/python", ".git/config", "static/vendor/uplot/uPlot.min.css"):
        assert is_ignored(path), path
    for path in ("jobs/__pycache__/keys.pyc", "service/routes/__pycache__/x.pyc", "docs/deploy.md", "tests/x.py"):
        assert is_ignored(path), path
    assert not is_ignored("service/migrations/0001_jobs.sql")


def test_every_image_is_pinned_and_python_is_one_the_project_takes(compose) -> None:
    bases = [arguments.split()[0] for name in DOCKERFILES for word, arguments in instructions(name) if word == "FROM"]
    pulled = [service["image"] for service in compose["services"].values() if "build" not in service]
    assert pulled
    assert all(map(PINNED.fullmatch, bases + pulled)), bases + pulled
    (python,) = {base for base in bases if base.startswith("python:")}
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    assert python.removeprefix("python:").split("-")[0].split(".")[:2] >= oldest


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_one_unprivileged_user_who_owns_the_data(name: str, compose) -> None:
    last = stages(name)[""]
    made = " ".join(arguments for word, arguments in last if word == "RUN")
    assert "useradd --uid 10001 --gid training" in made
    (owned,) = re.findall(r"install -d -o training -g training ([a-z/ ]+)", made)
    service = compose["services"][name.split("/")[0]]
    assert service["build"]["dockerfile"] == name
    assert {volume.split(":")[1] for volume in service["volumes"]} <= set(owned.split())
    assert [arguments for word, arguments in last if word == "USER"] == ["training"]


def test_only_the_runner_gets_torch_and_the_one_that_the_makefile_takes() -> None:
    front, muscle = ("\n".join(arguments for _, arguments in instructions(name)) for name in DOCKERFILES)
    assert "torch" not in front.lower()
    assert "[runner]" not in front
    assert '.whl)[runner]"' in muscle
    assert "runner" in PROJECT["project"]["optional-dependencies"]
    (torch,) = re.findall(r"^TORCH +\?= (.+)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert f"TORCH={torch}" in muscle


def test_each_setting_and_argument_that_an_image_or_the_compose_file_names_exists(compose) -> None:
    for name in DOCKERFILES:
        given = " ".join(arguments for word, arguments in instructions(name) if word == "ENV")
        assert set(re.findall(r"\b(?:TRAINING_\w+|REDIS_URL)(?==)", given)) <= SETTINGS
        taken = {arguments.split("=")[0] for word, arguments in instructions(name) if word == "ARG"}
        assert set(compose["services"][name.split("/")[0]]["build"].get("args", {})) <= taken
    assert set(re.findall(r"TRAINING_[A-Z_]+", COMPOSE.read_text())) <= SETTINGS


# -- the page


def test_the_page_names_settings_commands_and_modules_that_exist() -> None:
    assert set(re.findall(r"TRAINING_[A-Z_]+", PAGE)) <= SETTINGS
    for command in re.findall(r"training-api ([a-z]+)", PAGE):
        cli._parser().parse_args([command])
    assert all(map(find_spec, re.findall(r"python -m (gpu_runner[.\w]+)", PAGE)))
    (torch,) = set(re.findall(r"torch==[\d.]+", PAGE))
    assert torch in (CHECKOUT / "Makefile").read_text()


def test_the_messages_that_the_page_explains_are_those_that_programs_say() -> None:
    said = "".join(path.read_text() for package in PROJECT["tool"]["importlinter"]["root_packages"]
                   for path in (CHECKOUT / package).rglob("*.py"))  # fmt: skip
    explained = re.findall(r"^\| status 2, `([^`]+)`", PAGE, re.MULTILINE)
    assert len(explained) == 5
    pieces = [piece.strip() for message in explained for piece in message.split("…")]
    missing = [piece for piece in pieces if piece.removesuffix("=").removesuffix(": Permission denied") not in said]
    assert not missing


def test_an_override_of_the_page_mounts_only_what_its_image_has_and_its_user_owns(compose) -> None:
    assert len(overrides()) == 2
    for services in (parse(text)["services"] for text in overrides()):
        assert set(services) <= set(compose["services"])
        for name in set(services) & set(OURS):
            made = " ".join(arguments for _, arguments in instructions(f"{name}/Dockerfile"))
            for volume in services[name]["volumes"]:
                target = volume["target"] if isinstance(volume, dict) else volume.split(":")[1]
                assert re.search(rf"install -d -o training -g training .*{target}", made), target


def test_the_units_of_the_page_give_a_runner_the_time_to_save() -> None:
    _, unit = re.findall(r"^ +\[Service\]\n(.*?)^ +\[Install\]", PAGE, re.DOTALL | re.MULTILINE)
    assert "training-api runner" in unit
    (stop_s,) = re.findall(r"TimeoutStopSec=(\d+)", unit)
    assert float(stop_s) >= Settings().stop_grace_s + AFTER_GRACE_S
    assert "KillMode=mixed" in unit, "systemd would signal the jobs themselves, too"


def _back_up(where: str, database: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the page's backup of a database; the copy is `folder`/backup.db."""
    programs = re.findall(r"-c '(import [a-z, ]*sqlite3.*?)'", PAGE, re.DOTALL)
    program = programs[("bare metal", "container").index(where)].replace("/data/", f"{folder}/")
    arguments = [database, folder / "backup.db"] if where == "bare metal" else []
    environment = {"TRAINING_DATABASE": str(database)}  # the container's, where it is set
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("where", ["bare metal", "container"])
def test_the_backup_of_the_page_copies_a_database_in_use(tmp_path: Path, where: str) -> None:
    used, copy = tmp_path / "database" / "training.db", tmp_path / "backup.db"
    used.parent.mkdir()
    with contextlib.closing(sqlite3.connect(used, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE jobs (job_id TEXT)")
        database.executemany("INSERT INTO jobs VALUES (?)", [("a",), ("b",)])
        answer = _back_up(where, used, tmp_path)
        assert answer.stdout == "ok 2 jobs\n", answer.stderr
    assert Path(f"{copy}-wal").exists() is False
    with contextlib.closing(sqlite3.connect(copy)) as copied_one:
        assert copied_one.execute("SELECT job_id FROM jobs").fetchall() == [("a",), ("b",)]


@pytest.mark.parametrize("where", ["bare metal", "container"])
def test_the_backup_of_the_page_makes_nothing_of_a_database_that_is_elsewhere(tmp_path: Path, where: str) -> None:
    answer = _back_up(where, tmp_path / "training.db", tmp_path)
    assert answer.returncode != 0
    assert "ok" not in answer.stdout
    assert list(tmp_path.iterdir()) == []


# -- the service's image, without an engine


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_the_service_image_installs_serves_the_api_and_the_page_without_torch(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "venv"
    for name, target, origin in copied(stages("service/Dockerfile")["wheel"]):
        if origin is None:
            copy_as_an_engine_would(name, source / (name if target == "./" else target))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(home)]
    subprocess.run([*pip, "install", "--no-compile", str(source)], check=True)
    found = "import importlib.util as u; print([n for n in ('torch', 'arq', 'numpy', 'PIL') if u.find_spec(n)])"
    run = {"cwd": tmp_path, "text": True, "capture_output": True}
    assert subprocess.run([home / "bin/python", "-I", "-c", found], **run).stdout.strip() == "[]"
    serves_api_and_page(home / "bin" / "training-api", tmp_path)


def copy_as_an_engine_would(name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path = CHECKOUT / name
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        if not is_ignored(str(file.relative_to(CHECKOUT))):
            copy = target / file.relative_to(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def serves_api_and_page(program: Path, folder: Path) -> None:
    """As in the compose file: another address than loopback's own, a token from a file, a Redis by address."""
    (folder / "token").write_text(TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "TRAINING_DATA_ROOT": str(folder / "data"),
        "TRAINING_HOST": "127.0.0.2",
        "TRAINING_PORT": str(port),
        "TRAINING_TOKEN_FILE": str(folder / "token"),
        "REDIS_URL": "redis://127.0.0.1:1/0",  # nobody's: the service is up and says so
    }
    service = subprocess.Popen([program, "serve"], cwd=folder, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.2:{port}", trust_env=False, timeout=10) as http:
            deadline = time.monotonic() + 60
            while not answers(http):
                assert service.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert http.get("/health").status_code == 401
            http.headers["authorization"] = f"Bearer {TOKEN}"
            health = http.get("/health").json()
            assert (health["status"], health["database"], health["redis"]) == ("degraded", True, False)
            page = http.get("/ui/")
            assert (page.status_code, "<!doctype html>" in page.text.lower()) == (200, True)
            assert http.get("/docs").status_code == 200
            assert not (folder / "data" / "redis").exists(), "a Redis was started although one is named"
    finally:
        service.terminate()
        service.wait(20)


def answers(http: httpx.Client) -> bool:
    try:
        return bool(http.get("/health").status_code)
    except httpx.TransportError:
        return False
