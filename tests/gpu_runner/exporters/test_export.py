"""The recipe export, on real checkpoints of a small real model."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from gpu_runner.exporters import huggingface, lora_adapter
from gpu_runner.recipes.export import run
from gpu_runner.training import checkpoints
from gpu_runner.training.models import Loaded
from gpu_runner.work import Stopped, Work
from jobs import events
from jobs.errors import JobFailed, ModelUnavailable
from jobs.models import DEMO_MODEL
from jobs.paths import DataRoot
from jobs.specs import ExportFormat, ExportSpec

Train = Callable[[str], str]
Export = Callable[..., Work[ExportSpec]]


def said(work: Work[Any], kind: type[events.Event]) -> list[Any]:
    lines = map(events.decode_event, work.folder.journal.read_bytes().splitlines())
    return [event for event in lines if isinstance(event, kind)]


def visible(root: DataRoot) -> set[str]:
    """The names below exports/, hidden ones included."""
    return {path.name for path in root.exports.iterdir()} if root.exports.exists() else set()


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_merged_folder_loads_in_plain_transformers(root: DataRoot, train: Train, export: Export, method: str) -> None:
    work = export(train(method))
    result = run(work)

    folder = root.path_of(result.export_path)
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, "full precision, never 4-bit"
    assert AutoProcessor.from_pretrained(folder, local_files_only=True).chat_template
    assert result.verification["reloaded_vs_trained"] <= 1e-4
    assert result.verification["tokens"] > 3 * 64, "three rows with their image tokens were compared"
    assert ("merged_vs_trained" in result.verification) == (method != "full")


def test_merging_changes_the_base_as_the_adapters_did(root: DataRoot, train: Train, export: Export) -> None:
    result = run(export(train("lora")))
    assert result.verification["adapters_effect"] > 1e-3, "else this test would prove nothing"

    merged = load_file(root.path_of(result.export_path) / "model.safetensors")
    base = load_file(root.models / DEMO_MODEL / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_loads_in_plain_peft(root: DataRoot, train: Train, export: Export, method: str) -> None:
    result = run(export(train(method), ExportFormat.LORA_ADAPTER))

    folder = root.path_of(result.export_path)
    base = AutoModelForImageTextToText.from_pretrained(root.models / DEMO_MODEL, local_files_only=True)
    model = PeftModel.from_pretrained(base, folder)
    weights = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert weights
    assert all(bool(weight.any()) for weight in weights)
    assert AutoProcessor.from_pretrained(folder, local_files_only=True).chat_template
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == DEMO_MODEL
    assert (folder / "adapter_model.safetensors").stat().st_size < 10**6


def test_the_archive_holds_the_model_and_its_card_below_one_folder(
    root: DataRoot, train: Train, export: Export, tmp_path: Path
) -> None:
    work = export(train("lora"))
    result = run(work)

    packed = root.path_of(result.archive_path)
    assert packed.name == "Flat-colours-lora-huggingface.zip"
    assert (packed.stat().st_size, sha256(packed.read_bytes()).hexdigest()) == (
        result.archive_bytes,
        result.archive_sha256,
    )
    assert result.file_size_mb == round(result.archive_bytes / 2**20, 2) > 1
    with zipfile.ZipFile(packed) as opened:
        opened.extractall(tmp_path)
        names = opened.namelist()
    assert {name.partition("/")[0] for name in names} == {packed.stem}
    assert {f"{packed.stem}/README.md", f"{packed.stem}/config.json", f"{packed.stem}/model.safetensors"} <= set(names)
    AutoModelForImageTextToText.from_pretrained(tmp_path / packed.stem, local_files_only=True)


def test_the_journal_tells_phases_and_the_archive(root: DataRoot, train: Train, export: Export) -> None:
    work = export(train("lora"))
    result = run(work)

    phases = [event.phase for event in said(work, events.PhaseEntered)]
    assert phases == ["loading", "merging", "saving", "verifying", "packing"]
    (artifact,) = said(work, events.ArtifactCreated)
    assert (artifact.kind, artifact.path, artifact.sha256) == ("export", result.archive_path, result.archive_sha256)
    assert root.path_of(artifact.path).is_file()


def test_nothing_of_an_export_names_a_path_of_this_host(root: DataRoot, train: Train, export: Export) -> None:
    for export_format in (ExportFormat.HUGGINGFACE, ExportFormat.LORA_ADAPTER):
        folder = root.path_of(run(export(train("lora"), export_format)).export_path)
        telling = [path.name for path in folder.iterdir() if str(root.folder.parent).encode() in path.read_bytes()]
        assert telling == []


def test_the_best_checkpoint_is_exported_not_the_newest(root: DataRoot, train: Train, export: Export) -> None:
    attempt = root.attempt(train("full"), 1)
    completed = events.decode_event(attempt.journal.read_bytes().splitlines()[-1])
    assert isinstance(completed, events.JobCompleted)
    other = root.name_of(attempt.checkpoints / "step-2")
    job_id = _with_best(root, train("full"), other)

    result = run(export(job_id))
    assert "step 2, the one with the best evaluation" in result.message
    exported = load_file(root.path_of(result.export_path) / "model.safetensors")
    expected = load_file(root.path_of(other) / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_a_broken_best_checkpoint_is_passed_over(root: DataRoot, train: Train, export: Export) -> None:
    job_id = _with_best(root, train("full"), "jobs/nowhere/attempt-1/checkpoints/step-9")
    assert "step 4, the newest complete one" in run(export(job_id)).message


def test_the_message_says_what_became_of_merge_adapters(train: Train, export: Export) -> None:
    merged_anyway = run(export(train("lora"), merge_adapters=False)).message
    assert "although merge_adapters is false" in merged_anyway
    assert "merge_adapters" not in run(export(train("lora"), merge_adapters=True)).message
    assert "no effect" in run(export(train("lora"), ExportFormat.LORA_ADAPTER, merge_adapters=True)).message
    assert "4-bit" in run(export(train("qlora"))).message


def test_without_a_card_there_is_none(root: DataRoot, train: Train, export: Export) -> None:
    for export_format in (ExportFormat.HUGGINGFACE, ExportFormat.LORA_ADAPTER):
        result = run(export(train("lora"), export_format, generate_model_card=False))
        assert result.model_card_path is None
        assert not (root.path_of(result.export_path) / "README.md").exists()


@pytest.mark.parametrize("export_format", [ExportFormat.HUGGINGFACE, ExportFormat.LORA_ADAPTER])
def test_a_model_that_reads_text_only_is_exported_with_its_tokeniser(
    root: DataRoot, train: Train, export: Export, export_format: ExportFormat
) -> None:
    result = run(export(train("text"), export_format))
    folder = root.path_of(result.export_path)
    assert AutoTokenizer.from_pretrained(folder, local_files_only=True).chat_template
    assert result.verification["reloaded_vs_trained"] <= 1e-4
    assert "AutoModelForCausalLM" in (folder / "README.md").read_text()


def test_an_adapter_of_a_full_fine_tune_is_refused(train: Train, export: Export) -> None:
    with pytest.raises(JobFailed, match="no adapters: export it as 'huggingface'"):
        run(export(train("full"), ExportFormat.LORA_ADAPTER))


def test_a_job_without_a_whole_checkpoint_is_refused(root: DataRoot, train: Train, export: Export) -> None:
    job_id = _copy(root, train("lora"), "job-broken")
    for weights in root.job(job_id).rglob("adapter_model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelUnavailable, match="no complete checkpoint"):
        run(export(job_id))


def test_data_that_are_gone_leave_a_built_in_question(root: DataRoot, train: Train, export: Export) -> None:
    job_id = _copy(root, train("lora"), "job-without-data")
    start = root.attempt(job_id, 1).start
    start.write_text(start.read_text().replace("datasets/flat", "datasets/gone"))

    result = run(export(job_id))
    assert result.verification["rows"] == 1
    assert "built-in question" in result.message


@pytest.mark.parametrize("phase", ["loading", "merging", "saving", "verifying", "packing"])
def test_a_cancel_in_any_phase_ends_the_export_and_leaves_nothing(
    root: DataRoot, train: Train, export: Export, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = export(train("lora"))
    before = visible(root)
    entered = work.journal.phase

    def enter(name: str) -> None:
        entered(name)
        work.stop.wanted = "cancel" if name == phase else work.stop.wanted

    monkeypatch.setattr(work.journal, "phase", enter)
    with pytest.raises(Stopped):
        run(work)
    assert visible(root) == before
    assert said(work, events.ArtifactCreated) == []


def test_what_an_interrupted_attempt_left_is_replaced(root: DataRoot, train: Train, export: Export) -> None:
    work = replace(export(train("lora")), attempt=3)
    hidden = [root.exports / f".{work.job_id}.{attempt}" for attempt in (1, 2, 3)]
    for left_over in (*hidden, root.export(work.job_id)):
        (left_over / "model").mkdir(parents=True)
        (left_over / "half.bin").touch()
    result = run(work)
    assert not any(folder.exists() for folder in hidden)
    assert not (root.export(work.job_id) / "half.bin").exists()
    assert root.path_of(result.archive_path).is_file()


# -- planted faults: each must be caught before anything is published


def _merge_nothing(trained: Loaded) -> Loaded:
    return replace(trained, model=trained.model.unload())


def _lose_projector(prepared: Loaded, folder: Path) -> None:
    _save(prepared, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "projector" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _blank_projector(prepared: Loaded, folder: Path) -> None:
    _save(prepared, folder)
    weights = load_file(folder / "model.safetensors")
    blanked = {name: torch.zeros_like(tensor) if "projector" in name else tensor for name, tensor in weights.items()}
    save_file(blanked, folder / "model.safetensors", {"format": "pt"})


def _other_template(prepared: Loaded, folder: Path) -> None:
    _save(prepared, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>' + message", "<|im_start|>the ' + message"))


def _other_picture_size(prepared: Loaded, folder: Path) -> None:
    _save(prepared, folder)
    config = folder / "processor_config.json"
    read = json.loads(config.read_text())
    read["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    config.write_text(json.dumps(read))


def _blank_adapters(prepared: Loaded, folder: Path) -> None:
    _save_adapter(prepared, folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


_save, _save_adapter = huggingface.save, lora_adapter.save


@pytest.mark.parametrize(
    ("module", "function", "fault", "sentence"),
    [
        (huggingface, "prepare", _merge_nothing, "the merged model answers differently"),
        (huggingface, "save", _lose_projector, "lacks .* of its weights"),
        (huggingface, "save", _blank_projector, "the saved model answers differently"),
        (huggingface, "save", _other_template, "chat template or tokeniser"),
        (huggingface, "save", _other_picture_size, "image processor"),
        (lora_adapter, "save", _blank_adapters, "the saved model answers differently"),
    ],
)
def test_a_planted_fault_is_caught_before_anything_is_published(
    root: DataRoot,
    train: Train,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    fault: Callable[..., Any],
    sentence: str,
) -> None:
    export_format = ExportFormat.HUGGINGFACE if module is huggingface else ExportFormat.LORA_ADAPTER
    work = export(train("lora"), export_format)
    before = visible(root)
    monkeypatch.setattr(module, function, fault)
    with pytest.raises(JobFailed, match=sentence):
        run(work)
    assert visible(root) == before


def test_a_diverged_training_is_not_exported(root: DataRoot, train: Train, export: Export) -> None:
    job_id = _copy(root, train("full"), "job-diverged")
    for folder in root.attempt(job_id, 1).checkpoints.glob("step-*"):
        file = folder / "model" / "model.safetensors"
        save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file, {"format": "pt"})
        _sign_again(folder)
    with pytest.raises(JobFailed, match="training diverged"):
        run(export(job_id))


def _copy(root: DataRoot, job_id: str, name: str) -> str:
    """A copy of a job's folder that a test may spoil."""
    shutil.copytree(root.job(job_id), root.job(name))
    journal = root.attempt(name, 1).journal
    journal.write_text(journal.read_text().replace(f"jobs/{job_id}/", f"jobs/{name}/"))
    return name


def _with_best(root: DataRoot, job_id: str, best: str) -> str:
    """A copy of a job whose result names another best checkpoint."""
    name = _copy(root, job_id, f"{job_id}-best-{Path(best).name}")
    journal = root.attempt(name, 1).journal
    lines = journal.read_bytes().splitlines()
    completed = json.loads(lines[-1])
    completed["result"]["best_checkpoint_path"] = best
    journal.write_bytes(b"\n".join([*lines[:-1], json.dumps(completed).encode()]) + b"\n")
    return name


def _sign_again(folder: Path) -> None:
    """Make a spoilt checkpoint verify."""
    manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"size_bytes": len(content), "sha256": sha256(content).hexdigest()}
    (folder / checkpoints.MANIFEST).write_text(json.dumps(manifest))
