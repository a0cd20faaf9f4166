"""Hostile exports and datasets, all at once against the real programs: each is answered, the service stays well."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from hostile_datasets import CASES as ALL_CASES
from hostile_datasets import Case
from hostile_exports import HOSTILE, Hostile

from jobs.calls import Json
from jobs.lifecycle import TERMINAL
from jobs.results import ConvertResult

# Neighbours in the lists are of one kind, and the tests of the recipes send all: here each kind is heard to its end.
EXPORTS, CASES = list(HOSTILE)[::2], ALL_CASES[::4]

_AT_ONCE = 8  # requests under way
_LONGEST_S = 400.0  # for all jobs together, on a busy machine
_DO_NOT_WAIT = {"prefer": "respond-async"}
_OUTSIDE = tuple(map(Path, ("/escaped.txt", "/tmp/escaped.txt", "/etc/cron.d/x", "/etc/x.png")))

pytestmark = pytest.mark.timeout(500)  # about 15 s where nothing else runs


class Ended(NamedTuple):
    """What became of one: the answer that refused it, or its job's end."""

    status: int
    body: Json
    job: Json | None = None

    @property
    def refusal(self) -> str:
        if self.job is None:
            return str(self.body["detail"])
        return self.job["failure_detail"] or ""


class Watch:
    """Asks /health five times a second, from a thread of its own, and keeps what was not well."""

    def __init__(self, address: str) -> None:
        self.asked = 0
        self.ill: list[str] = []
        self._address = address
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._address, trust_env=False, timeout=5) as http:
            while not self._over.wait(0.2):
                self.asked += 1
                try:
                    answer = http.get("/health")
                    if answer.status_code != 200 or answer.json()["status"] != "healthy":
                        self.ill.append(answer.text)
                except httpx.HTTPError as error:
                    self.ill.append(repr(error))


@pytest.fixture(scope="module")
def http(house) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{house.settings.address}/api", trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def places(house, split, sample_zip, tmp_path_factory) -> dict[str, set[str]]:
    """What lies around, once the fixtures of other modules have written theirs."""
    return _places(house)


@pytest.fixture(scope="module")
def ended(house, http, places) -> tuple[dict[str, Ended], dict[Case, Ended], Watch]:
    """Everything sent as fast as it is taken, and waited for: the ends of exports, of datasets, and the watch."""
    sources = _write_datasets(house, http)
    with Watch(house.settings.address) as watch, ThreadPoolExecutor(_AT_ONCE) as pool:
        exports = list(pool.map(lambda name: _send_export(http, name), EXPORTS))
        datasets = list(pool.map(lambda source: _send_dataset(http, source), sources))
        deadline = time.monotonic() + _LONGEST_S
        exports = [_wait(http, each, deadline) for each in exports]
        datasets = [_wait(http, each, deadline) for each in datasets]
    return dict(zip(EXPORTS, exports, strict=True)), dict(zip(CASES, datasets, strict=True)), watch


def _send_export(http: httpx.Client, name: str) -> Ended:
    number = EXPORTS.index(name)
    content = HOSTILE[name].archive()
    answer = http.post("/data/upload", files={"file": (f"{number}.zip", content, "application/zip")})
    if answer.is_error:
        return Ended(answer.status_code, answer.json())
    body = {"sam2_zip_path": answer.json()["file_path"], "output_dir": f"hostile-{number}"}
    answer = http.post("/data/prepare", json=body, headers=_DO_NOT_WAIT)
    return Ended(answer.status_code, answer.json())


def _send_dataset(http: httpx.Client, path: str) -> Ended:
    answer = http.post("/data/validate", json={"data_path": path, "level": "strict"}, headers=_DO_NOT_WAIT)
    return Ended(answer.status_code, answer.json())


def _wait(http: httpx.Client, sent: Ended, deadline: float) -> Ended:
    if sent.status != 202:
        return sent
    while (job := http.get(f"/jobs/{sent.body['job_id']}").json())["status"] not in TERMINAL:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return sent._replace(job=job)


def _write_datasets(house, http: httpx.Client) -> list[str]:
    """A folder for each case; the names to validate."""
    arrow = house.root / "datasets" / "spoilt" / "arrow"
    given = {"sam2_zip_path": _good_export(http), "output_dir": "spoilt/arrow", "target_format": "huggingface"}
    assert http.post("/data/convert", json=given).status_code == 200
    sources = []
    for number, case in enumerate(CASES):
        folder = house.root / "datasets" / "spoilt" / str(number) / "d"
        case.lay(folder, partial(shutil.copytree, arrow, folder))
        sources.append(case.path.replace("datasets/", f"datasets/spoilt/{number}/"))
    return sources


def _good_export(http: httpx.Client) -> str:
    content = HOSTILE["the same frame three times"].archive()
    answer = http.post("/data/upload", files={"file": ("good.zip", content, "application/zip")})
    return str(answer.raise_for_status().json()["file_path"])


def _places(house) -> dict[str, set[str]]:
    """Names: at the data root, of datasets, of half-made ones, and of what lies where hostile names point to."""
    datasets = house.root / "datasets"
    return {
        "root": {path.name for path in house.root.iterdir()},
        "datasets": {path.name for path in datasets.iterdir() if path.name not in ("spoilt", ".staging")},
        "staging": {path.name for path in datasets.glob(".staging/*")},
        "around": {str(path) for path in house.root.parent.iterdir()},
        "outside": {str(path) for path in _OUTSIDE if path.exists()},
    }


def test_every_hostile_export_gets_its_answer(ended) -> None:
    exports, _, _ = ended
    assert not {name: end for name, end in exports.items() if not _is_answered(HOSTILE[name], end)}


def _is_answered(hostile: Hostile, end: Ended) -> bool:
    if end.job is not None and hostile.refusal is None:
        result = end.job["result"]
        return bool(result and hostile.check(msgspec.convert(result["convert"], ConvertResult)))
    if hostile.refusal is None:
        return False
    if end.job is None and end.status == 400:
        return bool(end.body["code"] == "not_a_zip")
    if end.job is None:
        wanted = end.status == 422 and end.body["code"] == "dataset_invalid"
    else:
        wanted = end.job["status"] == "failed" and end.job["failure_reason"] == "dataset_invalid"
    return wanted and hostile.refusal in end.refusal and len(end.refusal) < 2000


def test_every_hostile_dataset_gets_its_answer(ended) -> None:
    _, datasets, _ = ended
    wrong = {case.name: end for case, end in datasets.items() if not _is_found(case, end)}
    assert not wrong


def _is_found(case: Case, end: Ended) -> bool:
    if end.job is None:
        return 400 <= end.status < 500 and case.is_answered_by([], end.refusal)
    if end.job["status"] == "failed":
        return end.job["failure_reason"] == "dataset_invalid" and case.is_answered_by([], end.refusal)
    result: dict[str, Any] = end.job["result"]
    findings = [(each["rule"], each["severity"], each["message"]) for each in (*result["errors"], *result["warnings"])]
    return end.job["status"] == "completed" and case.is_answered_by(findings, "")


def test_no_answer_names_a_place_on_the_server(house, ended) -> None:
    exports, datasets, _ = ended
    for end in (*exports.values(), *datasets.values()):
        assert str(house.root) not in json.dumps([end.body, end.job])


def test_nothing_is_written_but_the_datasets_of_jobs_that_completed(house, places, ended) -> None:
    exports, _, _ = ended
    after = _places(house)
    results = [end.job["result"] for end in exports.values() if end.job and end.job["status"] == "completed"]
    made = {result["output_dir"] for result in results}
    made |= {f"{result['output_dir']}-split" for result in results if result["split"]}
    assert after["root"] - places["root"] <= {"fingerprints", "uploads", ".trash"}
    assert {f"datasets/{name}" for name in after["datasets"] - places["datasets"]} == made
    assert after["staging"] == set()
    assert after["around"] == places["around"]
    assert after["outside"] == places["outside"]


def test_the_service_answers_that_it_is_well_all_along(ended) -> None:
    _, _, watch = ended
    assert watch.asked > 5
    assert watch.ill == []


def test_a_good_export_prepares_afterwards(http, ended) -> None:
    answer = http.post("/data/prepare", json={"sam2_zip_path": _good_export(http), "output_dir": "after-all"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["num_samples"] == 3
