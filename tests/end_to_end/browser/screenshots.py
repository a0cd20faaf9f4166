"""`make screenshots`: pictures of the main pages, light, dark and on a phone, from a service with real work in it.

Run as `python tests/end_to_end/browser/screenshots.py FOLDER`. It starts the three programs on a data root of its own,
lets them prepare a sample export, train, export, and leaves one training running and one waiting in the pictures.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2] / "helpers"))  # pytest does it for the tests
from receiver import receiving

from jobs.calls import Json
from jobs.client import Client
from jobs.events import MetricsLogged
from jobs.settings import Settings
from service.programs import Programs, free_port

_LOOKS: dict[str, Json] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 2},
}
_SETTLES_MS = 2500
_CONFIG: Json = {
    "model_name": "demo-llava",
    "train_data_path": "datasets/street-split/train.jsonl",
    "val_data_path": "datasets/street-split/val.jsonl",
    "use_lora": False,
    "num_epochs": 10,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "max_length": 256,
    "logging_steps": 1,
    "eval_steps": 10,
    "save_steps": 20,
}


def main(target: Path) -> int:
    chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if chromium is None:
        sys.stderr.write("No Chromium is on the PATH; Debian's package is `chromium`.\n")
        return 1
    with tempfile.TemporaryDirectory() as folder, receiving() as receiver, sync_playwright() as playwright:
        settings = Settings(
            data_root=f"{folder}/data",
            port=free_port("127.0.0.1"),
            hf_offline=True,
            stop_grace_s=5,
            outgoing_networks=("127.0.0.0/8",),
        )
        with Programs(settings, log_folder=Path(folder, "logs")) as programs:
            programs.wait_until_ready()
            with Client(settings.address) as client:
                client.post("/api/webhooks", {"url": receiver.url, "description": "The team's chat"})
                addresses = _fill(client, Path(folder, "street.zip"))
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            _take(browser, f"{settings.address}/ui/", addresses, target)
            browser.close()
    return 0


def _fill(client: Client, archive: Path) -> dict[str, str]:
    """Work to look at; the address of each page by its name."""
    command = [sys.executable, "-m", "gpu_runner.sam2.sample", str(archive), "--videos", "8", "--frames", "16"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    uploaded = client.upload(archive)["file_path"]
    _run(client, {"kind": "prepare", "sam2_zip_path": uploaded, "output_dir": "datasets/street", "task": "classify"})
    finished = [
        _run(client, _training("all weights, 1e-3", tags=["street", "full"])),
        _run(client, _training("all weights, 3e-4", tags=["street", "full"], learning_rate=3e-4)),
        _run(client, _training("LoRA rank 8", tags=["street", "lora"], learning_rate=1e-3, use_lora=True)),
    ]
    _run(client, {"kind": "export", "job_id": finished[0], "export_format": "huggingface"})
    running = client.submit(_training("all weights, long", tags=["street"], num_epochs=60))
    client.submit(_training("waits for its turn", tags=["street"], num_epochs=60))
    for _, event in client.events(running):
        if isinstance(event, MetricsLogged) and event.step >= 60:
            break
    return {
        "jobs": "#/jobs",
        "job": f"#/job/{running}",
        "train": "#/train?preset=development",
        "data": "#/data",
        "dataset": "#/data/street-split",
        "experiments": "#/experiments",
        "compare": f"#/compare?ids={','.join(finished)}",
        "exports": "#/exports",
        "webhooks": "#/webhooks",
    }


def _training(name: str, tags: list[str], **changes: object) -> Json:
    return {"kind": "finetune", "config": _CONFIG | changes, "experiment_name": name, "tags": tags}


def _run(client: Client, spec: Json) -> str:
    return str(client.wait(client.submit(spec))["job_id"])


def _take(browser: Browser, page_address: str, addresses: dict[str, str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for look, settings in _LOOKS.items():
        context = browser.new_context(**settings)
        for name, address in addresses.items():
            page = context.new_page()
            page.goto(page_address + address)
            page.wait_for_timeout(_SETTLES_MS)
            page.screenshot(
                path=target / f"{name}-{look}.png", full_page=look != "phone" and name in ("job", "dataset", "compare")
            )
            page.close()
            sys.stdout.write(f"{target / f'{name}-{look}.png'}\n")
        context.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
