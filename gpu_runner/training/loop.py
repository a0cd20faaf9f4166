"""The training loop: step, report, evaluate, save. Called by the recipe finetune.

Killed at any point and resumed from its newest checkpoint, it logs the same numbers as if nothing had happened
(exactly so in fp32 on a CPU): data order, RNG, schedule and the sums of the open logging window are restored.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from gpu_runner.training import checkpoints, optimisation, run_state, trainable
from gpu_runner.training.checkpoints import Checkpoint, Manifest
from gpu_runner.training.encoding import RowEncoder, collate
from gpu_runner.training.evaluation import Scores, Validation
from gpu_runner.training.models import Loaded
from gpu_runner.training.optimisation import Optimisation
from gpu_runner.training.plan import Plan
from gpu_runner.training.run_log import RunLog, finite
from gpu_runner.training.run_state import RunState, Window
from gpu_runner.training.selection import Selection
from gpu_runner.work import Stopped, Work
from jobs.events import JobPaused
from jobs.specs import FinetuneSpec


class TrainingLoop:
    """One run. `run` takes it from where its state stands to the last step."""

    def __init__(
        self,
        work: Work[FinetuneSpec],
        loaded: Loaded,
        encoder: RowEncoder,
        training: Selection,
        validation: Validation | None,
        begin: Checkpoint | None,
    ) -> None:
        self._work = work
        self._config = work.spec.config
        self._loaded = loaded
        self._encoder = encoder
        self._training = training
        self._validation = validation
        self.plan = Plan.of(self._config, len(training))
        self.state = RunState(rows=len(training))
        self.checkpoint = begin
        self._optimisation = Optimisation(loaded, self._config, self.plan.total_steps)
        if begin is not None:
            self.state.restore(begin.state, self._optimisation)
            self._find_best()
        self._report = RunLog(work.journal, self.plan, loaded.compute, self.state.step)
        self._is_save_due = False

    def run(self) -> None:
        """Train to the end; the last step is logged, evaluated and saved whatever the intervals.

        Raises:
            Stopped: a cancel, or a pause or leave once the state is saved.
            JobFailed: it diverged, or an evaluation was not possible; what was trained until then is saved.
        """
        self._work.journal.phase("training")
        if self.state.step == 0:
            self._show_untrained()
        while self.state.step < self.plan.total_steps:
            learning_rate, grad_norm = self._step()
            if self._is_due(self._config.logging_steps):
                self._log(learning_rate, grad_norm)
            scores = self._evaluate() if self._is_due(self._config.eval_steps) else None
            self._is_save_due |= self._is_due(self._config.save_steps)
            if self._is_save_due and self._may_save():
                self._save(scores)
            if self._work.stop.wanted in ("pause", "leave") and self._may_save() and not self._is_last():
                self._save_and_stop()

    def _step(self) -> tuple[float, float]:
        """One update of the weights; gives learning rate and gradient norm."""
        began, seen = time.monotonic(), 0
        total, tokens, scale = 0.0, 0, 0
        micro_batches = self.plan.micro_batches(self.state.step)
        for indices in micro_batches:
            self._work.stop.check_cancel()
            batch = self._batch(indices)
            loss, count = optimisation.summed_loss(self._loaded, batch)
            scale = scale or count * len(micro_batches)  # near the step's tokens: keeps fp16 gradients in range
            self._optimisation.backward(loss / scale)
            total, tokens = total + loss.item(), tokens + count
            seen += int(batch["attention_mask"].sum())
        grad_norm, learning_rate = self._optimisation.step(scale / tokens)
        self.state.step += 1
        self.state.window.loss += total
        self.state.window.tokens += tokens
        self._report.stepped(time.monotonic() - began, seen)
        self._report.progress(self.state.step)
        return learning_rate, grad_norm

    def _batch(self, indices: list[int]) -> dict[str, Tensor]:
        rows = [self._encoder.encode(*self._training.open(index)) for index in indices]
        return collate(rows, self._loaded.tokenizer.pad_token_id)

    def _find_best(self) -> None:
        """The best checkpoint of earlier attempts was taken over with the newest ones, if it was whole."""
        best = self.state.best_checkpoint
        folder = self._work.folder.checkpoints / Path(best).name if best else None
        if folder is not None and folder.exists():
            self.state.best_checkpoint = self._name_of(folder)
        else:
            self.state.best_checkpoint = self.state.best_checkpoint_loss = None

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self._is_last()

    def _is_last(self) -> bool:
        return self.state.step == self.plan.total_steps

    def _may_save(self) -> bool:
        """Not right after a skipped update: the next good one shows whether the run recovers."""
        return not self._optimisation.skipped_in_a_row or self._is_last()

    def _log(self, learning_rate: float, grad_norm: float) -> None:
        self.state.train_loss = self.state.window.mean()
        self._report.log_training(
            self.state.step, self.state.train_loss, learning_rate, grad_norm, self._optimisation.skipped
        )
        self.state.window = Window()

    def _show_untrained(self) -> None:
        if self._validation:
            with self._evaluating():
                self._report.samples(0, self._validation.samples(self._loaded, self._beat))

    def _evaluate(self) -> Scores | None:
        if self._validation is None:
            return None
        try:
            with self._evaluating():
                scores, answers = self._validation.score(self._loaded, self._beat)
        except Stopped:
            raise
        except Exception:
            self._save_unscored()
            raise
        self._report.log(self.state.step, scores.named())
        self._report.samples(self.state.step, answers)
        self.state.note_scores(scores.loss, scores.accuracy)
        return scores

    def _save(self, scores: Scores | None) -> None:
        self._optimisation.check_weights()
        metrics = finite({} if scores is None else scores.named())
        folder = self._work.folder.checkpoints
        self.state.note_checkpoint(self._name_of(folder / f"step-{self.state.step}"), metrics.get("eval_loss"))
        self._work.journal.phase("saving")
        self.checkpoint = checkpoints.write(folder, self._manifest(metrics), self._fill, self._work.journal.sync)
        self._work.journal.checkpoint(self.state.step, self.checkpoint.folder, self.checkpoint.size_bytes, metrics)
        self._is_save_due = False
        self._rotate()
        self._work.journal.phase("training")

    def _rotate(self) -> None:
        work, best = self._work, self.state.best_checkpoint
        best_folder = work.root.path_of(best) if best else None
        say_gone = work.journal.checkpoint_removed
        checkpoints.rotate(work.folder.checkpoints, self._config.save_total_limit, best_folder, say_gone)
        checkpoints.discard_earlier(work.root, work.job_id, work.attempt, say_gone)

    def _fill(self, checkpoint: Checkpoint) -> None:
        """Write the files of a checkpoint."""
        if self._config.method == "full":
            self._loaded.model.save_pretrained(checkpoint.model)
            self._loaded.processor.save_pretrained(checkpoint.model)
        else:
            self._loaded.model.save_pretrained(checkpoint.model, save_embedding_layers=False)
        self.state.save(checkpoint.state, self._optimisation)

    def _manifest(self, metrics: dict[str, float]) -> Manifest:
        return Manifest(
            job_id=self._work.job_id,
            attempt=self._work.attempt,
            step=self.state.step,
            method=self._config.method,
            model_name=self._config.model_name,
            metrics=metrics,
            lines=self._work.journal.lines,
        )

    def _save_unscored(self) -> None:
        if self._may_save() and (self.checkpoint is None or self.checkpoint.step != self.state.step):
            self._save(None)

    def _save_and_stop(self) -> None:
        self._save_unscored()
        if self._work.stop.wanted == "pause":
            self._work.journal.state(JobPaused, step=self.state.step)
        raise Stopped

    def _beat(self) -> None:
        self._work.stop.check_cancel()
        self._report.progress(self.state.step)

    def _name_of(self, folder: Path) -> str:
        return self._work.root.name_of(folder)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Work beside the training, which must not change its course."""
        self._work.journal.phase("evaluating")
        self._loaded.model.eval()
        with run_state.rng_untouched():
            yield
        trainable.train_mode(self._loaded)
        self._work.journal.phase("training")
