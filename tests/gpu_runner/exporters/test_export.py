"""The recipe export, on real checkpoints of a small real model."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from gpu_runner.exporters import huggingface, lora_adapter
from gpu_runner.host_memory import HostMemory
from gpu_runner.recipes.export import run
from gpu_runner.training import adapters, checkpoints, models
from gpu_runner.training.models import Loaded
from gpu_runner.work import Stopped, Work
from jobs import commands, events
from jobs.commands import Start
from jobs.errors import DiskFull, JobFailed, ModelUnavailable, OutOfMemory
from jobs.models import DEMO_MODEL
from jobs.paths import DataRoot
from jobs.settings import Settings
from jobs.specs import EvaluateSpec, ExportFormat, ExportSpec

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
    job_id = _with_best(root, train("full"), "step-2")
    best = root.attempt(job_id, 1).checkpoints / "step-2"

    result = run(export(job_id))
    assert "step 2, the one with the best evaluation" in result.message
    exported = load_file(root.path_of(result.export_path) / "model.safetensors")
    expected = load_file(best / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_a_broken_best_checkpoint_is_passed_over(root: DataRoot, train: Train, export: Export) -> None:
    job_id = _with_best(root, _copy(root, train("full"), "job-torn"), "step-2")
    (root.attempt(job_id, 1).checkpoints / "step-2" / "state.pt").unlink()
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


@pytest.mark.parametrize("export_format", [ExportFormat.HUGGINGFACE, ExportFormat.LORA_ADAPTER])
def test_an_export_keeps_the_number_format_of_its_base(
    root: DataRoot, train: Train, export: Export, monkeypatch: pytest.MonkeyPatch, export_format: ExportFormat
) -> None:
    monkeypatch.setattr(models, "stored_dtype", lambda *_, **__: torch.float16)
    result = run(export(train("lora"), export_format))
    weights = load_file(root.path_of(result.export_path) / _WEIGHTS[export_format])
    expected = torch.float16 if export_format is ExportFormat.HUGGINGFACE else torch.float32
    assert {tensor.dtype for tensor in weights.values()} == {expected}


def test_the_stored_format_is_the_one_in_the_config(root: DataRoot) -> None:
    source = models.source_of(DEMO_MODEL, root, Settings(data_root=str(root.folder)))
    assert models.stored_dtype(source) is torch.float32


@pytest.mark.parametrize(
    ("method", "fits", "four_bit"), [("qlora", False, True), ("qlora", True, False), ("lora", False, False)]
)
def test_exported_adapters_go_onto_a_four_bit_base_only_where_they_must_and_were_trained_so(
    root: DataRoot,
    train: Train,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fits: bool,
    four_bit: bool,
) -> None:
    work = export(train(method), ExportFormat.LORA_ADAPTER)
    run(work)
    start = Start(job_id=work.job_id, attempt=1, spec=work.spec, device="cpu")
    work.folder.start.write_bytes(commands.encode(start))
    monkeypatch.setattr(models, "_fits", lambda *_: fits)
    spec = EvaluateSpec(data_path="datasets/flat", export_id=work.job_id)
    loaded = models.load_named(spec, root, work.settings, "cpu")
    assert bool(adapters.quantised_layers(loaded.model, 4)) == four_bit


@pytest.mark.parametrize(
    ("function", "left", "error"),
    [
        ("gpu_runner.training.room.shutil.disk_usage", SimpleNamespace(free=1000), DiskFull),
        ("gpu_runner.host_memory.read", HostMemory(None, 1000), OutOfMemory),
    ],
)
def test_an_export_without_room_is_refused_before_it_loads_anything(
    train: Train, export: Export, monkeypatch: pytest.MonkeyPatch, function: str, left: Any, error: type[JobFailed]
) -> None:
    work = export(train("lora"))
    monkeypatch.setattr(function, lambda *_: left)
    monkeypatch.setattr(models, "load_checkpoint", None)
    with pytest.raises(error, match=r"needs \d"):
        run(work)


_WEIGHTS = {ExportFormat.HUGGINGFACE: "model.safetensors", ExportFormat.LORA_ADAPTER: "adapter_model.safetensors"}


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
    template.write_text(template.read_text().replace("<|im_start|>", "the <|im_start|>"))


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
    """A copy of a job in which this checkpoint was evaluated best."""
    name = _copy(root, job_id, f"{job_id}-{best}")
    file = root.attempt(name, 1).checkpoints / best / checkpoints.MANIFEST
    manifest = json.loads(file.read_bytes())
    manifest["metrics"]["eval_loss"] = 0.0
    file.write_text(json.dumps(manifest))
    return name


def _sign_again(folder: Path) -> None:
    """Make a spoilt checkpoint verify."""
    manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
    for entry in manifest["files"]:
        content = (folder / entry["path"]).read_bytes()
        entry |= {"size_bytes": len(content), "sha256": sha256(content).hexdigest()}
    (folder / checkpoints.MANIFEST).write_text(json.dumps(manifest))
