"""The terminal's commands against a running service: what they print, where, and how they end."""

import asyncio
import io
import json
import threading
import time
import zipfile
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from jobs import calls, events, presets
from jobs.client import Client
from jobs.errors import FailureReason, NotCompleted
from jobs.lifecycle import Status
from jobs.paths import DataRoot
from jobs.results import Finding
from jobs.specs import Kind
from service import cli, demo, remote, watching


async def trains(attempt) -> None:
    """A short training with everything a watcher may be told."""
    await attempt.begin()
    await attempt.say(events.PhaseEntered, phase="training")
    await attempt.say(events.JobNoted, message="fp16\x1b[2J became fp32")
    for step in (1, 2, 3):
        values = {"train_loss": 1 / step} | ({"eval_loss": 0.25} if step == 3 else {})
        await attempt.say(events.MetricsLogged, step=step, total_steps=3, values=values)
        await attempt.progress(step, 3, eta_s=61.0)
    said = {"row_id": "0", "prompt": "?", "expected": "red", "predicted": "\x1b[31mred", "correct": True}
    await attempt.say(events.SamplePredicted, step=3, **said)
    await attempt.complete()


async def fails(attempt) -> None:
    await attempt.begin()
    await attempt.say(events.JobFailed, reason=FailureReason.OUT_OF_MEMORY, detail="use a smaller batch_size")


def _training(dataset: str) -> list[str]:
    return ["submit", "--model", "demo-llava", "--train", dataset]


# -- submit


def test_submitted_options_become_the_spec_and_the_id_stands_alone_on_stdout(run, http, dataset) -> None:
    status, out, _ = run(
        *_training(dataset), "--name", "first", "--tag", "a", "--tag", "b",
        "--set", "num_epochs=7", "--set", "device=cpu", "--set", "experiment_name=renamed",
    )  # fmt: skip
    assert status == 0
    spec = http.get(f"/api/jobs/{out.strip()}").json()["spec"]
    assert (spec["experiment_name"], spec["tags"]) == ("renamed", ["a", "b"])
    assert (spec["config"]["num_epochs"], spec["config"]["device"]) == (7, "cpu")


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_spec_is_taken_from_a_file_or_from_stdin(run, http, dataset, way, tmp_path, monkeypatch) -> None:
    text = json.dumps({"kind": "validate", "data_path": "datasets/elsewhere"})
    (tmp_path / "spec.json").write_text(text)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    where = str(tmp_path / "spec.json") if way == "file" else "-"
    status, out, _ = run("submit", where, "--set", f"data_path={dataset}")
    assert status == 0
    assert http.get(f"/api/jobs/{out.strip()}").json()["spec"]["data_path"] == dataset


def test_a_file_without_a_kind_is_a_training_and_options_win_over_it(run, http, dataset, tmp_path) -> None:
    config = {"model_name": "other", "train_data_path": dataset, "num_epochs": 2}
    (tmp_path / "spec.json").write_text(json.dumps({"config": config}))
    _, out, _ = run("submit", str(tmp_path / "spec.json"), "--model", "demo-llava")
    config = http.get(f"/api/jobs/{out.strip()}").json()["spec"]["config"]
    assert (config["model_name"], config["num_epochs"]) == ("demo-llava", 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "--model", "demo-llava"], "train_data_path"),
        (["submit", "nowhere.json"], "nowhere.json cannot be read"),
        (["submit", "--set", "num_epochs"], "must be field=value"),
        (["watch", "nope"], "no job with that id"),
        (["logs", "nope"], "no job with that id"),
        (["export", "nope", "--format", "lora_adapter"], "no job with that id"),
        (["cancel", "nope"], "no job with that id"),
        (["cancel", ""], "'' could be any job"),
        (["cancel", "job_"], "'job_' could be any job"),
        (["watch", "job_019"], "'job_019' could be any job"),
        (["export", "nope", "--format", "lora_adapter", "-o", "nowhere/x.zip"], "There is no folder nowhere"),
        (["jobs", "--url", "http://x:abc"], "http://x:abc is no address of a service: Invalid port"),
        (["health", "--url", "http://x:abc"], "No healthy service at http://x:abc"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(run, arguments, words) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("config", ["abc", ["abc"], 3])
def test_a_config_that_is_no_object_is_refused_with_a_sentence(run, tmp_path, config) -> None:
    (tmp_path / "spec.json").write_text(json.dumps({"config": config}))
    status, out, err = run("submit", str(tmp_path / "spec.json"), "--model", "demo-llava")
    assert (status, out) == (1, "")
    assert "`config` must be an object" in err


def test_options_of_a_training_are_refused_for_other_kinds(run, tmp_path) -> None:
    (tmp_path / "spec.json").write_text('{"kind": "validate", "data_path": "x"}')
    status, _, err = run("submit", str(tmp_path / "spec.json"), "--model", "demo-llava")
    assert status == 1
    assert "are for finetune jobs" in err


def test_options_win_over_the_preset_they_begin_with(run, http, dataset) -> None:
    status, out, _ = run(*_training(dataset), "--preset", "8gb-gpu", "--set", "batch_size=2")
    assert status == 0
    config = http.get(f"/api/jobs/{out.strip()}").json()["spec"]["config"]
    asked = {"model_name": "demo-llava", "train_data_path": dataset, "batch_size": 2}
    expected = presets.preset("8gb-gpu").config | asked
    assert expected.items() <= config.items()


def test_an_unknown_preset_is_refused_with_those_there_are(run, dataset) -> None:
    status, out, err = run(*_training(dataset), "--preset", "huge")
    assert (status, out) == (1, "")
    assert f"There is no preset 'huge'; there are {', '.join(each.name for each in presets.PRESETS)}." in err


def test_warnings_about_a_spec_go_to_stderr(run, dataset) -> None:
    _, out, err = run(*_training(dataset), "--set", "learning_rate=0.005")
    assert out.startswith("job_")
    assert err.startswith("warning: learning_rate 0.005 is above")


def test_submitting_with_watch_keeps_stdout_for_the_id(run, house, dataset) -> None:
    house.runner.scripts[Kind.FINETUNE] = trains
    status, out, err = run(*_training(dataset), "--watch")
    assert status == 0
    assert out.startswith("job_")
    assert len(out.split()) == 1
    assert "step 1/3: loss 1.0000" in err


# -- watch


@pytest.mark.parametrize(("script", "status"), [("completes", 0), ("fails", 1), ("is cancelled", 3)])
def test_watching_ends_as_the_job_does(run, house, http, dataset, script, status, scripts) -> None:
    plays = {"completes": trains, "fails": fails, "is cancelled": scripts.run_until_stopped}
    house.runner.scripts[Kind.FINETUNE] = plays[script]
    job_id = run(*_training(dataset))[1].strip()
    if script == "is cancelled":
        threading.Timer(0.5, http.post, (f"/api/jobs/{job_id}/cancel",)).start()
    answer = run("watch", job_id)
    assert answer[0] == status
    assert {"completes": "completed", "fails": "failed: use a smaller batch_size", "is cancelled": "was cancelled"}[
        script
    ] in answer[1] + answer[2]
    assert run("watch", job_id[4:])[0] == status, "and again, once it is over, by the end of its id"


def test_without_a_terminal_plain_lines_tell_everything_once(run, house, dataset) -> None:
    gate = threading.Event()

    async def when_watched(attempt) -> None:
        await asyncio.to_thread(gate.wait, 10)
        await trains(attempt)

    house.runner.scripts[Kind.FINETUNE] = when_watched
    job_id = run(*_training(dataset))[1].strip()
    threading.Timer(0.5, gate.set).start()
    _, out, _ = run("watch", job_id)
    lines = out.splitlines()
    for line in (
        "attempt 1 runs on Fake CPU",
        "training",
        "note: fp16 [2J became fp32",
        "step 1/3: loss 1.0000",
        "step 3: loss 0.3333  eval loss 0.2500",
        "step 3: expected 'red', answers '\\x1b[31mred' ✓",
    ):
        assert lines.count(line) == 1, out


def test_a_terminal_gets_a_line_that_moves_with_what_is_worth_keeping_above(house, http, dataset) -> None:
    gate = threading.Event()

    async def when_watched(attempt) -> None:
        await asyncio.to_thread(gate.wait, 10)
        await trains(attempt)

    house.runner.scripts[Kind.FINETUNE] = when_watched
    screen = io.StringIO()
    with Client(f"http://{house.address}") as client:
        config = {"model_name": "demo-llava", "train_data_path": dataset}
        job_id = client.submit({"kind": "finetune", "config": config})
        threading.Timer(0.5, gate.set).start()
        watching.watch(client, job_id, Console(file=screen, force_terminal=True, width=120))
    shown = screen.getvalue()
    assert "━" in shown
    assert "100 %" in shown
    assert "note: fp16 [2J became fp32" in shown
    assert "\x1b[31mred" not in shown, "a model's answer steers no terminal"
    assert "\x1b[2J" not in shown


def test_the_line_says_where_a_job_stands() -> None:
    job = dict.fromkeys(("fraction", "phase", "step", "total_steps", "train_loss", "eta_s"))
    view = watching.View(job | {"status": "pending", "waiting_reason": "no runner"})
    assert view.note == "no runner"
    _hear(
        view,
        (events.JobPlaced, {"runner_id": "r", "device": "cpu"}),
        (events.JobStarted, {"device": "cpu"}),
        (events.PhaseEntered, {"phase": "training"}),
        (events.MetricsLogged, {"step": 3, "values": {"train_loss": 0.5}}),
        (events.JobProgressed, {"step": 4, "total_steps": 8, "fraction": 0.5, "eta_s": 83.2}),
    )
    assert view.note == "training  step 4/8  loss 0.500  0:01:23 left"
    assert view.fraction == 0.5


def test_the_line_forgets_what_an_earlier_attempt_said() -> None:
    job = dict.fromkeys(("fraction", "phase", "step", "total_steps", "train_loss", "eta_s"))
    view = watching.View(job | {"status": "pending", "waiting_reason": "no runner"})
    _hear(view, (events.JobPlaced, {"runner_id": "r", "device": "cpu"}), (events.JobStarted, {"device": "cpu"}))
    _hear(view, (events.PhaseEntered, {"phase": "training"}))
    _hear(view, (events.JobProgressed, {"step": 4, "total_steps": 8, "fraction": 0.5, "eta_s": 83.2}))
    _hear(view, (events.JobInterrupted, {"cause": "it fell"}))
    assert view.note == "waiting for a place", "not for the runner that came"
    _hear(view, (events.JobPlaced, {"runner_id": "r", "device": "cpu"}), (events.JobStarted, {"device": "cpu"}))
    assert view.note == "starting"


def _hear(view: watching.View, *said: tuple[type[events.Event], dict]) -> None:
    about = {"job_id": "j", "attempt": 1, "at": "2026-01-01T00:00:00Z"}
    for kind, fields in said:
        view.hear(msgspec.convert({"type": events.type_of(kind), **about, **fields}, kind))


# -- logs


class _Writing:
    """Scripts that print, piece by piece, as soon as the terminal has shown what was printed before."""

    def __init__(self, root: DataRoot, screen: io.StringIO, *attempts: list[str]) -> None:
        self._root, self._screen, self._attempts = root, screen, attempts

    async def __call__(self, attempt) -> None:
        number = attempt.start.attempt
        await attempt.begin()
        log = self._root.jobs / attempt.job_id / f"attempt-{number}" / "output.log"
        log.parent.mkdir(parents=True)
        for piece in self._attempts[number - 1]:
            with log.open("ab") as file:
                file.write(piece.encode("latin-1"))
            await asyncio.to_thread(self._wait_until_shown, piece)
        if number < len(self._attempts):
            await attempt.say(events.JobInterrupted, cause="it fell")
        else:
            await attempt.complete()

    def _wait_until_shown(self, piece: str) -> None:
        deadline = time.monotonic() + 10
        while piece.isascii() and piece not in self._screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def prints(run, house, dataset, monkeypatch):
    """Has a training print these pieces, attempt by attempt, while its log is followed: what was shown, and stderr."""
    monkeypatch.setattr(calls, "LOOK_EVERY_S", 0.02)

    def follow(*attempts: list[str]) -> tuple[str, str]:
        screen = io.StringIO()
        house.runner.scripts[Kind.FINETUNE] = _Writing(house.root, screen, *attempts)
        job_id = run(*_training(dataset))[1].strip()
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", screen)
            status, _, err = run("logs", "-f", job_id)
        assert status == 0
        return screen.getvalue(), err

    return follow


def test_a_log_is_followed_to_the_jobs_end(prints) -> None:
    half = "½".encode().decode("latin-1")
    shown, _ = prints(["loss 0.5 ", half[0], half[1], "\nloss 0.4\n", "the end\n"])
    assert shown == "loss 0.5 ½\nloss 0.4\nthe end\n"


def test_a_log_that_another_attempt_begins_anew_is_followed_into_it(prints) -> None:
    shown, err = prints(["it began\n", "and fell\n"], ["it began anew ", "and held until the end\n"])
    assert shown == "it began\nand fell\nit began anew and held until the end\n"
    assert "attempt 2 of job_" in err


def test_a_log_is_printed_as_far_as_it_is(run, house, http, dataset, scripts) -> None:
    house.runner.scripts[Kind.FINETUNE] = scripts.run_until_stopped
    job_id = run(*_training(dataset))[1].strip()
    log = house.root.jobs / job_id / "attempt-1" / "output.log"
    log.parent.mkdir(parents=True)
    log.write_text("line\n" * 300_000)  # more than one answer holds
    assert run("logs", job_id)[:2] == (0, "line\n" * 300_000)
    http.post(f"/api/jobs/{job_id}/cancel")


# -- the others


def test_jobs_are_listed_as_a_table_and_as_json(run, trained) -> None:
    status, out, _ = run("jobs", "--kind", "finetune", "--limit", "3")
    assert status == 0
    row = next(line for line in out.splitlines() if trained in line)
    assert all(word in row for word in ("finetune", "completed", "made", "100 %"))
    listed = json.loads(run("jobs", "--json", "--status", "completed")[1])
    assert trained in [job["job_id"] for job in listed]
    assert {job["status"] for job in listed} == {"completed"}


def test_several_jobs_are_cancelled_at_once(run, house, dataset, trained, scripts) -> None:
    house.runner.scripts[Kind.FINETUNE] = scripts.run_until_stopped
    running, other = (run(*_training(dataset))[1].strip() for _ in range(2))
    house.wait_for(running, lambda job: job.status is Status.RUNNING)
    shared = running[:8]
    status, out, err = run("cancel", shared, "nope", trained, running)
    assert status == 1
    assert out.splitlines() == [f"{trained} had already completed", f"{running} is being cancelled"]
    assert f"{shared}: " in err
    assert f"jobs could be meant by '{shared}'" in err
    assert "nope: There is no job" in err
    assert run("watch", running)[0] == 3
    assert run("cancel", running)[1] == f"{running} is cancelled\n"
    run("cancel", other)


def test_an_export_is_made_downloaded_and_verified(run, house, trained, tmp_path, scripts, monkeypatch) -> None:
    content = bytes(range(256)) * 3000

    async def exports(attempt) -> None:
        result = scripts.default_result(attempt.job_id, attempt.spec)
        archive = house.root.folder / result.archive_path
        archive.parent.mkdir(parents=True)
        archive.write_bytes(content)
        await attempt.begin()
        checksum = sha256(content).hexdigest()
        await attempt.complete(msgspec.structs.replace(result, archive_bytes=len(content), archive_sha256=checksum))

    house.runner.scripts[Kind.EXPORT] = exports
    monkeypatch.chdir(tmp_path)
    status, out, err = run("export", trained, "--format", "lora_adapter")
    assert status == 0, err
    assert Path(out.strip()).read_bytes() == content
    assert sha256(content).hexdigest() in err
    status, _, err = run("export", trained, "--format", "lora_adapter")
    assert status == 1
    assert "exists already: name another file with -o" in err
    assert run("export", trained, "--format", "lora_adapter", "-o", "mine.zip")[1] == "mine.zip\n"


def test_a_failed_export_downloads_nothing(run, house, trained, tmp_path, monkeypatch) -> None:
    house.runner.scripts[Kind.EXPORT] = fails
    monkeypatch.chdir(tmp_path)
    assert run("export", trained, "--format", "lora_adapter")[0] == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def export_file(tmp_path) -> Path:
    file = tmp_path / "birds.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("annotations.json", b"{}")
    return file


def test_an_export_is_prepared_from_the_terminal(run, http, export_file) -> None:
    options = ("--task", "point", "--model", "demo-llava", "--set", "level=strict")
    status, out, err = run("prepare", str(export_file), *options)
    assert (status, out) == (0, "datasets/birds-split/train.jsonl\n"), err
    assert "prepared" in err
    assert "About demo-llava." in err
    spec = http.get("/api/jobs?kind=prepare&limit=1").json()["jobs"][0]["spec"]
    assert (spec["task"], spec["model_name"], spec["level"]) == ("point", "demo-llava", "strict")
    assert spec["sam2_zip_path"].endswith("/birds.zip")


def test_an_export_prepared_again_from_the_terminal_replaces_no_dataset(run, house, export_file) -> None:
    export_file = export_file.rename(export_file.with_name("swifts.zip"))
    for printed in ("swifts", "swifts-2"):
        assert run("prepare", str(export_file))[1] == f"datasets/{printed}-split/train.jsonl\n"
        (house.root.datasets / printed).mkdir(parents=True)
        (house.root.datasets / printed / "llava_dataset.jsonl").touch()


def test_a_dataset_that_is_not_valid_is_said_and_is_the_exit_status(run, house, scripts, export_file) -> None:
    async def finds(attempt) -> None:
        made = scripts.default_result(attempt.job_id, attempt.spec)
        finding = Finding(rule="masks", severity="error", message="3 masks are empty.", count=3, remedy="Draw them.")
        checked = msgspec.structs.replace(made.validate, passed=False, result="failed", errors=(finding,))
        await attempt.begin()
        await attempt.complete(msgspec.structs.replace(made, validate=checked, split=None, passed=False, success=False))

    house.runner.scripts[Kind.PREPARE] = finds
    status, out, err = run("prepare", str(export_file), "--name", "bad")
    assert (status, out) == (1, "datasets/bad\n")
    assert "error: 3 masks are empty. Draw them." in err


def test_a_file_that_is_not_there_is_said_before_anything_is_sent(run, tmp_path) -> None:
    status, _, err = run("prepare", str(tmp_path / "nothing.zip"))
    assert status == 1
    assert "There is no file" in err


def test_health_is_said_and_is_the_exit_status(run) -> None:
    assert run("health")[:2] == (0, "healthy\n")
    status, out, err = run("health", "--url", "http://127.0.0.1:9")
    assert (status, out) == (1, "")
    assert "No healthy service at http://127.0.0.1:9" in err


def test_health_wants_the_token_and_only_a_service_that_takes_work(build, monkeypatch, capsys, terminal) -> None:
    house = build(with_runner=False, token="t" * 32)
    monkeypatch.setenv("TRAINING_URL", f"http://{house.address}")
    assert cli.main(["health"]) == 1, "without the token nobody is told"
    monkeypatch.setenv("TRAINING_TOKEN", "t" * 32)
    assert cli.main(["health"]) == 0
    assert capsys.readouterr().out == "degraded\n"


def test_nobody_there_is_one_sentence(run) -> None:
    status, _, err = run("jobs", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert err.startswith("training-api: No service answers at http://127.0.0.1:9")


def test_ctrl_c_says_that_the_job_goes_on(run, house, http, dataset, scripts, monkeypatch) -> None:
    house.runner.scripts[Kind.FINETUNE] = scripts.run_until_stopped
    job_id = run(*_training(dataset))[1].strip()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remote.watching, "watch", interrupt)
    status, _, err = run("watch", job_id)
    assert status == 130
    assert f"`training-api cancel {job_id}` ends it" in err
    http.post(f"/api/jobs/{job_id}/cancel")


def test_the_demo_shows_each_job_to_its_end_and_goes_on_with_its_result(house, http, dataset) -> None:
    steps = demo._Steps(Console(file=io.StringIO()))
    with Client(f"http://{house.address}") as client, steps.bars:
        assert steps.run(client, {"kind": "validate", "data_path": dataset}, "Validate")["passed"]
        house.runner.scripts[Kind.VALIDATE] = fails
        with pytest.raises(NotCompleted, match="use a smaller batch_size"):
            steps.run(client, {"kind": "validate", "data_path": dataset}, "Validate")
