"""export: a trained model becomes a folder others can load, proven to answer as the trained model does, and a ZIP.

Everything is made in a hidden folder that is renamed when it is whole: an export that can be seen is a verified one.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpu_runner import exporters, staging
from gpu_runner.exporters import archive, model_card, trained_job, verification
from gpu_runner.exporters.model_card import Facts
from gpu_runner.exporters.trained_job import TrainedJob
from gpu_runner.exporters.verification import Evidence, Probes
from gpu_runner.training import device, models, room
from gpu_runner.training.device import Compute
from gpu_runner.training.models import EXPORTED, Loaded
from gpu_runner.work import Work
from jobs.errors import JobFailed
from jobs.results import ExportResult
from jobs.specs import ExportFormat, ExportSpec

CARD = "README.md"
_PHASES = ("loading", "merging", "saving", "verifying", "packing")


@dataclass(frozen=True)
class Saved:
    """What is known of the trained model once it has left memory. `checks` are named as in the result."""

    asked: Probes
    expected: Evidence
    compute: Compute
    sees_images: bool
    checks: dict[str, float]


def run(work: Work[ExportSpec]) -> ExportResult:
    """Raises ModelUnavailable, OutOfMemory or DiskFull, Stopped when asked to end, and JobFailed when the format
    does not fit the job or the export answers differently from the trained model."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        return _export(work)


def _export(work: Work[ExportSpec]) -> ExportResult:
    job = trained_job.find(work.root, work.settings, work.spec.job_id)
    if work.spec.export_format is ExportFormat.LORA_ADAPTER and job.method == "full":
        raise JobFailed("The job trained all weights, so it has no adapters: export it as 'huggingface'.")
    with _staging(work) as staged:
        saved = _save(work, job, staged / EXPORTED)
        checks = saved.checks | _verify(work, job, saved, staged / EXPORTED)
        if work.spec.generate_model_card:
            _write_card(work, job, saved, checks, staged / EXPORTED)
        _enter(work, "packing")
        packed = staged / archive.file_name(job.name, work.spec.export_format)
        sha256 = archive.pack(staged / EXPORTED, packed, work.stop.check)
        folder = _publish(work, staged)
    work.journal.artifact("export", folder / packed.name, (folder / packed.name).stat().st_size, sha256)
    return _result(work, folder / packed.name, sha256, checks, _message(work.spec, job, saved))


@contextmanager
def _staging(work: Work[ExportSpec]) -> Iterator[Path]:
    """A folder beside the export's own, gone afterwards; what interrupted attempts left goes first."""
    staging.remove(work.root, work.job_id, work.attempt)
    folder = staging.export(work.root, work.job_id, work.attempt)
    (folder / EXPORTED).mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(work: Work[ExportSpec], job: TrainedJob, folder: Path) -> Saved:
    """Load the trained model, see what it answers, write it. It has left memory when this returns."""
    exporter = exporters.exporter(work.spec.export_format)
    _enter(work, "loading")
    trained = _load(work, job)
    sees_images = hasattr(trained.processor, "image_processor")
    asked = verification.probes(work.root, job.spec.config, sees_images=sees_images)
    expected = verification.observe(trained, asked)
    checks = {"rows": float(len(asked.rows))}
    if job.method != "full":
        checks["adapters_effect"] = verification.adapters_effect(trained, expected)
    if _merges(work.spec, job):
        _enter(work, "merging")
    prepared = exporter.prepare(trained)
    if _merges(work.spec, job):
        merged = verification.observe(prepared, asked)
        checks["merged_vs_trained"] = verification.check_same_logits(
            "the merged model", expected, merged, trained.compute.dtype
        )
    _enter(work, "saving")
    exporter.save(prepared, folder)
    return Saved(asked, expected, trained.compute, sees_images, checks)


def _load(work: Work[ExportSpec], job: TrainedJob) -> Loaded:
    """The trained model in the number format its weights are published in, if there is room for it and its export."""
    offline = work.settings.hf_offline
    source = models.source_of_weights(job.checkpoint, work.root, work.settings)
    dtype = models.stored_dtype(source, offline=offline)
    model_bytes = models.count_parameters(source, offline=offline) * dtype.itemsize
    is_adapter = work.spec.export_format is ExportFormat.LORA_ADAPTER
    room.check_disk_for_export(work.root, job.checkpoint.model_bytes if is_adapter else model_bytes)
    room.check_memory_for_export(torch.device(work.device), model_bytes)
    return models.load_checkpoint(job.checkpoint, work.root, work.settings, work.device, dtype=dtype)


def _verify(work: Work[ExportSpec], job: TrainedJob, saved: Saved, folder: Path) -> dict[str, float]:
    """Load the export as its users will and compare. Raises JobFailed."""
    _enter(work, "verifying")
    reloaded = exporters.exporter(work.spec.export_format).reload(folder, job.source, saved.compute)
    seen = verification.observe(reloaded, saved.asked)
    tokens = verification.check_same_inputs(saved.expected, seen)
    difference = verification.check_same_logits("the saved model", saved.expected, seen, saved.compute.dtype)
    return {"tokens": tokens, "reloaded_vs_trained": difference}


def _write_card(work: Work[ExportSpec], job: TrainedJob, saved: Saved, checks: dict[str, float], folder: Path) -> None:
    facts = Facts(
        job=job,
        export_format=work.spec.export_format,
        sees_images=saved.sees_images,
        verification=checks,
        tolerance=verification.TOLERANCE[saved.compute.dtype],
    )
    (folder / CARD).write_text(model_card.render(facts, work.root))


def _publish(work: Work[ExportSpec], staged: Path) -> Path:
    """The export's folder, in place as a whole; one that an interrupted attempt of this job left is replaced."""
    folder = work.root.export(work.job_id)
    if folder.exists():
        shutil.rmtree(folder)
    staged.rename(folder)
    return folder


def _result(work: Work[ExportSpec], packed: Path, sha256: str, checks: dict[str, float], message: str) -> ExportResult:
    folder, size_bytes = packed.parent, packed.stat().st_size
    card = folder / EXPORTED / CARD
    return ExportResult(
        export_id=work.job_id,
        job_id=work.spec.job_id,
        export_path=work.root.name_of(folder / EXPORTED),
        archive_path=work.root.name_of(packed),
        archive_bytes=size_bytes,
        archive_sha256=sha256,
        export_format=work.spec.export_format,
        file_size_mb=round(size_bytes / 2**20, 2),
        message=message,
        model_card_path=work.root.name_of(card) if work.spec.generate_model_card else None,
        verification=checks,
    )


def _message(spec: ExportSpec, job: TrainedJob, saved: Saved) -> str:
    """What the user should know of this export, as sentences."""
    sentences = [f"Exported the checkpoint of {job.checkpoint_said}, loaded it again and compared its answers."]
    if _merges(spec, job) and not spec.merge_adapters:
        sentences.append("The adapters were merged although merge_adapters is false: this folder must load by itself.")
    if spec.export_format is ExportFormat.LORA_ADAPTER and spec.merge_adapters:
        sentences.append("merge_adapters has no effect on lora_adapter: export as 'huggingface' to get merged weights.")
    if job.method == "qlora":
        sentences.append(f"It was trained on a {job.bits}-bit base and is exported for the full-precision one.")
    if saved.checks.get("adapters_effect", 1) <= verification.TOLERANCE[saved.compute.dtype]:
        sentences.append("The adapters change almost nothing: the training had hardly any effect.")
    if saved.asked.are_built_in:
        sentences.append("The training data are gone, so a built-in question was compared.")
    return " ".join(sentences)


def _merges(spec: ExportSpec, job: TrainedJob) -> bool:
    return spec.export_format is ExportFormat.HUGGINGFACE and job.method != "full"


def _enter(work: Work[ExportSpec], phase: str) -> None:
    work.stop.check()
    work.journal.phase(phase)
    work.journal.progress(_PHASES.index(phase), len(_PHASES))
