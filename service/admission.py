"""What a request must satisfy before it becomes a job: its paths, its model, the job it builds on.

`dispatch.py` asks before it records. Refused here is what can never work; what only the data can tell, the job says.
"""

import msgspec

from jobs import support
from jobs.errors import Conflict, InvalidInput, NotSupported, PathNotAllowed, UnknownExport, UnknownJob, WrongState
from jobs.lifecycle import LIVE, Status
from jobs.paths import DataRoot
from jobs.specs import (
    ConvertSpec,
    EvaluateSpec,
    ExportFormat,
    ExportSpec,
    FinetuneSpec,
    GenerateSpec,
    JobSpec,
    PlanSpec,
    PrepareSpec,
    PreviewSpec,
    SplitSpec,
    ValidateSpec,
    parts_of,
)
from jobs.training_config import TrainingConfig
from service.ledger import Ledger
from service.model_names import ModelNames
from service.records import JobRecord
from service.store import Store

_HIGH_LEARNING_RATE = 1e-3
_BUILT_FORMATS = (ExportFormat.HUGGINGFACE, ExportFormat.LORA_ADAPTER)

_replace = msgspec.structs.replace


class Admitted(msgspec.Struct, frozen=True):
    """The spec with normalised names, and sentences for whoever asked."""

    spec: JobSpec
    warnings: tuple[str, ...] = ()


class Admission:
    """Checks of each kind of spec."""

    def __init__(self, root: DataRoot, store: Store, ledger: Ledger, names: ModelNames) -> None:
        self._root = root
        self._store = store
        self._ledger = ledger
        self._names = names

    async def admit(self, spec: JobSpec) -> Admitted:
        """The spec as it is to be recorded.

        Raises:
            PathNotAllowed, FileMissing: a path leaves the data root, or nothing is there.
            InvalidInput, BadRatios, NotSupported: a value that can never work.
            UnknownJob, UnknownExport, WrongState: the job it builds on is not there or not completed.
            Conflict: the dataset's last validation failed.
        """
        if isinstance(spec, ConvertSpec):
            return Admitted(self._convert(spec))
        if isinstance(spec, ValidateSpec):
            return Admitted(_replace(spec, data_path=self._existing(spec.data_path)))
        if isinstance(spec, SplitSpec):
            return Admitted(self._split(spec))
        if isinstance(spec, PrepareSpec):
            return Admitted(self._prepare(spec))
        if isinstance(spec, FinetuneSpec | PlanSpec):
            return await self._training(spec)
        if isinstance(spec, PreviewSpec):
            config, notes = await self._config(spec.config)  # its data may be invalid: it is only looked at
            return Admitted(_replace(spec, config=config), notes)
        if isinstance(spec, ExportSpec):
            return Admitted(await self._export(spec))
        return await self._use(spec)

    # -- one kind each

    def _convert(self, spec: ConvertSpec) -> ConvertSpec:
        return _replace(
            spec,
            sam2_zip_path=self._existing(spec.sam2_zip_path),
            output_dir=self._dataset_folder(spec.output_dir),
            add_to=self._existing(spec.add_to) if spec.add_to else None,
        )

    def _split(self, spec: SplitSpec) -> SplitSpec:
        spec.check_ratios()
        return _replace(
            spec,
            data_path=self._existing(spec.data_path),
            output_dir=self._dataset_folder(spec.output_dir),
            keep=self._existing(spec.keep) if spec.keep else None,
        )

    def _prepare(self, spec: PrepareSpec) -> PrepareSpec:
        spec.division.check_ratios()
        conversion = self._convert(spec.conversion)
        output_dir = conversion.output_dir
        split_dir = self._dataset_folder(spec.split_dir or parts_of(output_dir))
        keep = self._existing(spec.keep) if spec.keep else None
        if _overlap(split_dir, output_dir):
            raise InvalidInput("must lie beside output_dir: each of the two folders is written whole", path="split_dir")
        if keep is not None and _is_within(keep, output_dir):
            raise InvalidInput("lies in output_dir, which is written anew before the rows are divided", path="keep")
        return _replace(
            spec,
            sam2_zip_path=conversion.sam2_zip_path,
            output_dir=output_dir,
            add_to=conversion.add_to,
            split_dir=split_dir,
            keep=keep,
        )

    async def _training(self, spec: FinetuneSpec | PlanSpec) -> Admitted:
        config, notes = await self._config(spec.config)
        if not config.allow_invalid_data:
            await self._refuse_failed_data(config)
        return Admitted(_replace(spec, config=config), (*warnings_of(config), *notes))

    async def _config(self, config: TrainingConfig) -> tuple[TrainingConfig, tuple[str, ...]]:
        """A configuration with its names made sure of, and sentences about them."""
        paths: dict[str, str | None] = {"train_data_path": self._existing(config.train_data_path)}
        if config.val_data_path is not None:
            paths["val_data_path"] = self._existing(config.val_data_path)
        if config.output_dir is not None:
            paths["output_dir"] = self._root.confine(config.output_dir)
        if config.continue_from is not None:
            paths["continue_from"] = await self._continuable(config, config.continue_from)
        note = (await self._names.source(config.model_name)).note
        family = await self._names.family(config.model_name)
        if family is not None and (why := support.why_not_family(family, config.method)):
            raise InvalidInput(why, path="config.model_name")
        if config.device != "auto" and (why := support.why_not_device(config, config.device)):
            raise InvalidInput(why, path="config.qlora_bits")
        return _replace(config, **paths), (note,) if note else ()

    async def _use(self, spec: EvaluateSpec | GenerateSpec) -> Admitted:
        """A job that lets a model answer rows."""
        spec = _replace(spec, data_path=self._existing(spec.data_path))
        if spec.job_id is not None:
            return Admitted(_replace(spec, job_id=(await self._completed_training(spec.job_id)).job_id))
        if spec.export_id is not None and await self._store.export(spec.export_id) is None:
            raise UnknownExport
        if spec.model_name is None:
            return Admitted(spec)
        try:
            note = (await self._names.source(spec.model_name)).note
        except InvalidInput as error:
            raise InvalidInput(error.message, path="model_name") from None
        return Admitted(spec, (note,) if note else ())

    async def _export(self, spec: ExportSpec) -> ExportSpec:
        training = await self._completed_training(spec.job_id)
        if spec.export_format not in _BUILT_FORMATS:
            raise NotSupported(
                f"This version does not build {spec.export_format}. Export as huggingface or lora_adapter, and convert "
                "the folder with that format's own tools."
            )
        config = training.spec.config if isinstance(training.spec, FinetuneSpec) else None
        if spec.export_format is ExportFormat.LORA_ADAPTER and config is not None and config.method == "full":
            raise WrongState(
                f"Training {training.job_id} was a full fine-tune and has no adapter: export it as huggingface."
            )
        label = self._root.confine(spec.output_dir) if spec.output_dir is not None else None
        return _replace(spec, job_id=training.job_id, output_dir=label)

    # -- paths

    def _existing(self, path: str) -> str:
        return self._root.confine_existing(path)

    def _dataset_folder(self, path: str) -> str:
        """The name of a folder that a job may write as a whole."""
        name = self._root.confine(path)
        first, *parts = name.split("/")
        if first != "datasets" or any(part.startswith(".") for part in parts):
            raise PathNotAllowed(
                "output_dir must be a folder below datasets/: give a plain name such as 'birds/llava', "
                "without hidden folders."
            )
        return name

    # -- what is there already

    async def _referred(self, reference: str) -> JobRecord:
        """The training of that id, or the newest one with that label (its `output_dir`)."""
        job = await self._ledger.job(reference) or await self._labelled(reference)
        if job is None:
            raise UnknownJob
        if not isinstance(job.spec, FinetuneSpec):
            raise WrongState(f"Job {job.job_id} is a {job.kind} job: name a training.")
        return job

    async def _halted_training(self, reference: str) -> JobRecord:
        """One that computes no more and may have left checkpoints, whatever ended it."""
        job = await self._referred(reference)
        if job.status in LIVE and job.status is not Status.PAUSED:
            raise WrongState(f"Training {job.job_id} is {job.status}: pause it, or wait until it has ended.")
        return job

    async def _completed_training(self, reference: str) -> JobRecord:
        job = await self._referred(reference)
        if job.status in LIVE:
            raise WrongState(f"Training {job.job_id} is {job.status}: wait until it is completed.")
        if job.status is not Status.COMPLETED:
            raise WrongState(f"Training {job.job_id} has {job.status}, so it left no model: name a completed one.")
        return job

    async def _continuable(self, config: TrainingConfig, reference: str) -> str:
        """The training to go on from, when it left what this one can begin with."""
        earlier = await self._halted_training(reference)
        if isinstance(earlier.spec, FinetuneSpec):
            await self._refuse_other_model(config, earlier.job_id, earlier.spec.config.model_name)
            if why := support.why_not_continue(config, earlier.spec.config):
                raise InvalidInput(why, path="config.continue_from")
        if config.continue_from_step is not None:
            await self._refuse_removed_step(earlier.job_id, config.continue_from_step)
        return earlier.job_id

    async def _refuse_other_model(self, config: TrainingConfig, job_id: str, trained: str) -> None:
        """Two names may mean one model."""
        theirs, ours = await self._names.source(trained), await self._names.source(config.model_name)
        if theirs.location != ours.location:
            raise InvalidInput(
                f"Job {job_id} trained {trained}: set model_name to that to continue it.", path="config.model_name"
            )

    async def _refuse_removed_step(self, job_id: str, step: int) -> None:
        kept = sorted({checkpoint.step for checkpoint in await self._store.checkpoints(job_id)})
        if step not in kept:
            remedy = f"set continue_from_step to one of {', '.join(map(str, kept))}."
            raise InvalidInput(
                f"Job {job_id} has kept no checkpoint of step {step}: "
                + (remedy if kept else "continue another job, or none."),
                path="config.continue_from_step",
            )

    async def _labelled(self, label: str) -> JobRecord | None:
        try:
            name = self._root.confine(label)
        except PathNotAllowed:
            return None
        job_id = await self._store.newest_by_label(name)
        return await self._ledger.job(job_id) if job_id else None

    async def _refuse_failed_data(self, config: TrainingConfig) -> None:
        for name in (config.train_data_path, config.val_data_path):
            validation = await self._store.last_validation(name) if name is not None else None
            if validation is not None and not validation.passed:
                raise Conflict(
                    f"The last validation of {name} failed: mend the dataset and validate it again, "
                    "or send allow_invalid_data: true."
                )


def _is_within(name: str, folder: str) -> bool:
    return f"{name}/".startswith(f"{folder}/")


def _overlap(one: str, other: str) -> bool:
    return _is_within(one, other) or _is_within(other, one)


def warnings_of(config: TrainingConfig) -> list[str]:
    """Settings that are allowed and rarely meant."""
    found = []
    if config.use_qlora and not config.use_lora:
        found.append("use_qlora implies use_lora: adapters are trained on the quantised base.")
    if config.method != "full" and config.lora_alpha < config.lora_rank:
        found.append(
            f"lora_alpha {config.lora_alpha} is below lora_rank {config.lora_rank}, which scales the adapters down: "
            "alpha is usually the rank or twice the rank."
        )
    if config.learning_rate > _HIGH_LEARNING_RATE:
        found.append(f"learning_rate {config.learning_rate:g} is above 1e-3, where training usually diverges.")
    return found
