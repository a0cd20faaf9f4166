"""What a leak does to a test: one video divided twice, a model trained on each, both asked about a video of its own.

Not a timing: the figures are accuracies. The labels are arbitrary, one a scene, so a model can only remember them. Run
in this process by the recipes themselves; the same steps over HTTP are in docs/data.md.
"""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import Report, at_least, at_most
from gpu_runner.journal import Journal
from gpu_runner.recipes import recipe
from gpu_runner.sam2 import sample
from gpu_runner.work import Stop, Work
from jobs import presets
from jobs.paths import DataRoot
from jobs.results import EvaluateResult, SplitResult
from jobs.settings import Settings
from jobs.specs import ConvertSpec, EvaluateSpec, FinetuneSpec, Spec, SplitSpec, SplitStrategy, TargetTask, kind_of
from jobs.training_config import TrainingConfig

CLAIM = "A test that leaks flatters: the same model, asked about a new video, knows next to nothing."

FRAMES, SCENES, NEW_SCENES = 300, 30, 100
_EPOCHS = 28
_CONFIG = presets.preset("demo").config | {"num_epochs": _EPOCHS, "eval_steps": 100, "batch_size": 8, "device": "cpu"}


class Outcome(NamedTuple):
    """What came of one division: its parts, and the answers to its own test part and to a video of its own."""

    split: SplitResult
    own: EvaluateResult
    new: EvaluateResult


def run() -> Report:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        recipes = Recipes(Path(folder))
        video, new = recipes.convert("video", SCENES, seed=0), recipes.convert("new", NEW_SCENES, seed=1)
        outcomes = {
            strategy: _train(recipes, video, new, strategy)
            for strategy in (SplitStrategy.RANDOM, SplitStrategy.TEMPORAL)
        }
    flattered, honest = outcomes[SplitStrategy.RANDOM], outcomes[SplitStrategy.TEMPORAL]
    return Report(
        claim=CLAIM,
        setup=f"A rendered video of {FRAMES} frames in {SCENES} scenes; each scene has a background and an object of "
        f"its own and one of {len(sample.NAMES)} labels, dealt by chance, so that nothing but another frame of the "
        f"scene tells it. Divided 50/10/40 by each strategy; demo-llava trained fully for {_EPOCHS} epochs on each, "
        f"then asked about its own test part and about a second video, of {NEW_SCENES} scenes that neither has seen.",
        columns=("", "test frames near training", "accuracy, own test", "accuracy, new video", "best fixed answer"),
        rows=[_row(strategy, outcome) for strategy, outcome in outcomes.items()],
        aims=[
            at_least("random split: accuracy on its own test", _percent(flattered.own), 80, "%"),
            at_most("random split: accuracy on a new video", _percent(flattered.new), 40, "%"),
            at_most("temporal split: accuracy on its own test", _percent(honest.own), 50, "%"),
        ],
    )


class Recipes:
    """Runs recipes in this process, below a folder, as a child does."""

    def __init__(self, folder: Path) -> None:
        self._root = DataRoot(folder)
        self._settings = Settings(data_root=str(folder), hf_offline=True)

    def run(self, job_id: str, spec: Spec) -> Any:
        attempt = self._root.attempt(job_id, 1)
        attempt.folder.mkdir(parents=True)
        work = Work(
            job_id=job_id,
            attempt=1,
            spec=spec,
            device="cpu",
            cores=1,
            root=self._root,
            folder=attempt,
            journal=Journal(self._root, attempt, job_id),
            stop=Stop(),
            settings=self._settings,
        )
        return recipe(kind_of(spec))(work)

    def convert(self, name: str, scenes: int, seed: int) -> str:
        """The dataset of one rendered video."""
        self._root.uploads.mkdir(exist_ok=True)
        archive = self._root.uploads / f"{name}.zip"
        sample.write_sample(archive, videos=1, frames=FRAMES, seed=seed, scene_frames=FRAMES // scenes, arbitrary=True)
        dataset = f"datasets/{name}"
        export = self._root.name_of(archive)
        self.run(name, ConvertSpec(sam2_zip_path=export, output_dir=dataset, task=TargetTask.CLASSIFY))
        return dataset


def _train(recipes: Recipes, video: str, new: str, strategy: SplitStrategy) -> Outcome:
    spec = SplitSpec(
        data_path=video,
        output_dir=f"{video}-{strategy}",
        strategy=strategy,
        train_ratio=0.5,
        val_ratio=0.1,
        test_ratio=0.4,
    )
    split = recipes.run(f"split-{strategy}", spec)
    config = TrainingConfig(**_CONFIG, train_data_path=split.train_path, val_data_path=split.val_path)  # type: ignore[arg-type]  # of several types
    recipes.run(f"train-{strategy}", FinetuneSpec(config=config))
    own, unseen = (
        recipes.run(f"{name}-{strategy}", EvaluateSpec(data_path=path, job_id=f"train-{strategy}", max_new_tokens=8))
        for name, path in (("own", split.test_path), ("new", new))
    )
    return Outcome(split, own, unseen)


def _row(strategy: SplitStrategy, outcome: Outcome) -> tuple[str, ...]:
    near = outcome.split.leakage["test"].near_share
    fixed = outcome.own.constant_accuracy or 0.0
    return strategy, f"{near:.0%}", f"{_percent(outcome.own):.0f}%", f"{_percent(outcome.new):.0f}%", f"{fixed:.0%}"


def _percent(result: EvaluateResult) -> float:
    return 100 * (result.label_accuracy or 0.0)
