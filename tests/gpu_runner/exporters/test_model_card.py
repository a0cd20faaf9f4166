"""The model card: facts that hold, code that runs, and a user's words that stay words."""

import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import msgspec
import pytest
from PIL import Image

from gpu_runner.exporters import model_card, trained_job
from gpu_runner.exporters.model_card import Facts
from gpu_runner.recipes.export import run
from gpu_runner.work import Work
from jobs.models import DEMO_MODEL
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import ExportFormat, ExportSpec

Train = Callable[[str], str]
Export = Callable[..., Work[ExportSpec]]


@pytest.fixture(scope="module")
def facts(root: DataRoot, train: Train) -> Facts:
    return Facts(
        job=trained_job.find(root, Settings(data_root=str(root.folder)), train("lora")),
        export_format=ExportFormat.HUGGINGFACE,
        sees_images=True,
        verification={"rows": 3.0, "reloaded_vs_trained": 1.5e-7},
        tolerance=1e-4,
    )


@pytest.mark.parametrize("export_format", [ExportFormat.HUGGINGFACE, ExportFormat.LORA_ADAPTER])
def test_the_code_on_the_card_runs_as_it_stands(
    root: DataRoot, train: Train, export: Export, monkeypatch: pytest.MonkeyPatch, export_format: ExportFormat
) -> None:
    result = run(export(train("lora"), export_format))
    folder = root.path_of(result.export_path)
    assert result.model_card_path == f"{result.export_path}/README.md"
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)

    Image.new("RGB", (80, 60), (10, 200, 30)).save(folder / "picture.jpg")
    if export_format is ExportFormat.LORA_ADAPTER:
        (folder / DEMO_MODEL).symlink_to(root.models / DEMO_MODEL)
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_the_front_matter_names_the_base_and_leaves_the_license_to_the_user(facts: Facts, root: DataRoot) -> None:
    head = model_card.render(facts, root).split("---\n")[1]
    assert head.splitlines()[:3] == [
        f'base_model: "{DEMO_MODEL}"',
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
    ]
    assert not re.search(r"^license:", head, re.MULTILINE)
    assert "# license:" in head


def test_a_users_words_cannot_become_yaml_or_markup(facts: Facts, root: DataRoot) -> None:
    nasty = "x\n---\n# title | <script>alert(1)</script> `code`"
    spec = msgspec.structs.replace(facts.job.spec, experiment_name=nasty, tags=("a: b", "- c", nasty, 'q"\\'))
    card = model_card.render(replace(facts, job=replace(facts.job, spec=spec)), root)
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    tags = [msgspec.json.decode(line[4:]) for line in head.splitlines() if line.startswith('  - "')]
    assert tags == ["training-api", "lora", "a: b", "- c", nasty, 'q"\\']
    assert "<script" not in body
    assert "\n---\n" not in body
    assert body.count("\n# ") == 1


def test_the_card_tells_what_was_trained_on_and_what_was_found(facts: Facts, root: DataRoot) -> None:
    card = model_card.render(facts, root)
    digest = sha256((root.datasets / "flat" / "llava_dataset.jsonl").read_bytes()).hexdigest()
    assert f"| training | datasets/flat | 6 | `{digest}` |" in card
    assert "| learning_rate | 0.01 |" in card
    assert "| lora_rank | 8 |" in card
    assert "1.5e-07" in card
    assert re.search(r"\| best_eval_loss \| \d", card)
    assert facts.job.checkpoint_said in card


def test_data_that_are_gone_are_said_to_be(facts: Facts, root: DataRoot) -> None:
    config = msgspec.structs.replace(facts.job.spec.config, train_data_path="datasets/gone")
    spec = msgspec.structs.replace(facts.job.spec, config=config)
    assert "| training | datasets/gone | not there any more |  |" in model_card.render(
        replace(facts, job=replace(facts.job, spec=spec)), root
    )
