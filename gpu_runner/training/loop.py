"""The training loop: step, report, evaluate, save. Called by the recipe finetune.

Killed at any point and resumed from its newest checkpoint, it logs the same numbers as if nothing had happened
(exactly so in fp32 on a CPU): data order, RNG, schedule and the sums of the open logging window are restored.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from gpu_runner.training import checkpoints, device, goal, room, run_state, trainable
from gpu_runner.training.batches import Batches, EncodedRows
from gpu_runner.training.checkpoints import Checkpoint, Manifest
from gpu_runner.training.curves import Curves
from gpu_runner.training.encoding import RowEncoder
from gpu_runner.training.evaluation import Validation
from gpu_runner.training.loss import needs_all_logits_at_once, summed_loss
from gpu_runner.training.models import Loaded
from gpu_runner.training.optimisation import Optimisation
from gpu_runner.training.plan import Plan
from gpu_runner.training.ranks import Ranks
from gpu_runner.training.run_log import RunLog, finite
from gpu_runner.training.run_state import RunState, Window
from gpu_runner.training.selection import Selection
from gpu_runner.training.vision_cache import VisionCache
from gpu_runner.work import Stopped, Work
from jobs.specs import FinetuneSpec

T = TypeVar("T")

Metrics = dict[str, float]


@dataclass
class Gathered:
    """What the micro-batches of a step gave: gradients on the parameters, and these sums.

    `loss` is summed over `tokens` trained ones; `seen` counts all real tokens, `scale` divided each loss. Of several
    processes, all but `scale` are added up before the update.
    """

    loss: float
    tokens: int
    seen: int
    scale: int


class TrainingLoop:
    """One run. `run` takes it from where its state stands to the last step."""

    def __init__(
        self,
        work: Work[FinetuneSpec],
        loaded: Loaded,
        encoder: RowEncoder,
        training: Selection,
        lengths: list[int],
        validation: Validation | None,
        begin: Checkpoint | None,
        ranks: Ranks,
    ) -> None:
        self._work = work
        self._config = work.spec.config
        self._loaded = loaded
        self._rows = EncodedRows(encoder, training)
        self._validation = validation
        self._ranks = ranks
        self._goal = goal.goal_of(self._config)
        self.plan = Plan.of(self._config, len(training), lengths, ranks.rank)
        self.state = RunState(rows=len(training), at_once=self.plan.at_once)
        self.checkpoint = begin
        self._optimisation = Optimisation(loaded, self._config, self.plan.total_steps, ranks)
        if begin is not None:
            self.state.restore(begin.state, self._optimisation)
            self.plan = self.plan.with_at_once(self.state.at_once)
            self._find_best()
        self._optimisation.begin_alike()
        curves = Curves(work.folder.tensorboard) if self._config.tensorboard and ranks.rank == 0 else None
        self._report = RunLog(work.journal, curves, self.plan, loaded.compute, self.state.step)
        self._is_save_due = False
        self._said: set[str] = set()
        self._first_step = self.state.step
        self._vision = self._vision_cache(encoder.sees_images) if self._config.cache_vision_features else None

    @property
    def tokens_per_second(self) -> float | None:
        """How fast it went, evaluations and saving left out; None before the first step."""
        return self._report.tokens_per_second

    def run(self) -> None:
        """Train to the end; the last step is logged, evaluated and saved whatever the intervals.

        Raises:
            Stopped: a cancel, or a pause or leave once the state is saved.
            JobFailed: it diverged, or an evaluation was not possible; what was trained until then is saved.
        """
        with self._report:
            self._report.phase("training")
            if self.state.step == 0:
                self._show_untrained()
            while not self._is_last():
                with self._batches() as batches:
                    self._train(batches)

    def follow(self) -> None:
        """Take part in a run that another process leads, to its end or until that one ends this one.

        Raises:
            JobFailed: it diverged.
        """
        while not self._is_last():
            with self._batches() as batches:
                while not self._is_last() and (gathered := self._gradients(batches)) is not None:
                    self._update(gathered)

    def _batches(self) -> Batches:
        return Batches(
            self._rows,
            self.plan,
            self._loaded.tokenizer.pad_token_id,
            first=self.state.step,
            workers=self._config.dataloader_workers,
            apart=self._vision is not None,
        )

    def _train(self, batches: Batches) -> None:
        """Step until the run's end, or until a step did not fit into memory and the plan has smaller pieces now."""
        while not self._is_last():
            gathered = self._gradients(batches)
            if gathered is None:
                return
            learning_rate, grad_norm = self._update(gathered)
            metrics = self._log(learning_rate, grad_norm) if self._is_due(self._config.logging_steps) else {}
            if self._is_due(self._config.eval_steps):
                metrics |= self._evaluate(metrics)
            if self.state.has_ended_early and self.state.window.tokens:
                self._log(learning_rate, grad_norm)
            self._is_save_due |= self._is_due(self._config.save_steps)
            if self._is_save_due and self._may_save():
                self._save(metrics)
            if self._work.stop.wanted in ("pause", "leave") and self._may_save() and not self._is_last():
                self._save_and_stop()

    def _gradients(self, batches: Batches) -> Gathered | None:
        """The gradients of the next step. None where they did not fit into memory: it begins again, in pieces half as
        large, from the very state it had."""
        began = time.monotonic()
        if self._ranks.rank > 0:
            run_state.seed_step(self._config.seed, self._ranks.rank, self.state.step)
        rng = run_state.rng_state()
        own = self._if_it_fits(lambda: self._gather(batches), self.plan.at_once // self._ranks.count)
        gathered = self._of_all(own)
        if gathered is None:
            self._optimisation.discard()
            run_state.set_rng_state(rng)
            device.give_back_memory(self._loaded.compute.device)
            self._take_fewer()
        else:
            self._note_logits()
            self._note_vision()
            self._report.stepped(time.monotonic() - began, gathered.seen)
        return gathered

    def _of_all(self, own: Gathered | None) -> Gathered | None:
        """The sums of all processes. None where memory was too short in any of them."""
        if self._ranks.count == 1:
            return own
        mine = own or Gathered(loss=0.0, tokens=0, seen=0, scale=0)
        short, loss, tokens, seen = self._ranks.sums([own is None, mine.loss, mine.tokens, mine.seen])
        return None if short else replace(mine, loss=loss, tokens=round(tokens), seen=round(seen))

    def _if_it_fits(self, compute: Callable[[], T], at_once: int) -> T | None:
        """None when memory was too short for so many rows and fewer are possible."""
        try:
            return compute()
        except Exception as error:
            if at_once <= 1 or not device.is_out_of_memory(error):
                raise
        return None  # out here, where the error no longer holds on to what filled the memory

    def _take_fewer(self) -> None:
        before, self.state.at_once = self.plan.at_once, self.plan.at_once // 2
        self.plan = self.plan.with_at_once(self.state.at_once)
        self._report.note(
            f"Memory was too short for {before} rows at once. The run goes on after step {self.state.step} with "
            f"{self.state.at_once} at once and more of these per update, so that each update sees the same rows.",
            "fewer_rows_at_once",
        )

    def _gather(self, batches: Batches) -> Gathered:
        losses: list[Tensor] = []
        gathered = Gathered(loss=0.0, tokens=0, seen=0, scale=0)
        pieces = len(self.plan.share(self.state.step))
        for batch in batches.of_step(self.state.step):
            self._work.stop.check_cancel()
            features = None if self._vision is None else self._vision.features(batch.rows)
            loss, count = summed_loss(self._loaded, batch.tensors, features)
            gathered.scale = gathered.scale or count * pieces  # near the step's tokens: keeps fp16 gradients in range
            self._optimisation.backward(loss / gathered.scale)
            losses.append(loss.detach())
            gathered.tokens += count
            gathered.seen += int(batch.tensors["attention_mask"].sum())
        if losses:
            gathered.loss = float(torch.stack(losses).double().sum())  # once a step: reading waits for a GPU
        return gathered

    def _update(self, gathered: Gathered) -> tuple[float, float]:
        """One update of the weights; gives learning rate and gradient norm."""
        grad_norm, learning_rate = self._optimisation.step(gathered.scale / gathered.tokens)
        self.state.step += 1
        self.state.window.loss += gathered.loss
        self.state.window.tokens += gathered.tokens
        self._report.progress(self.state.step)
        return learning_rate, grad_norm

    def _vision_cache(self, sees_images: bool) -> VisionCache | None:
        """None where it would change nothing, which is said. That is so of a whole run or not at all: one that goes on
        computes as it began."""
        if sees_images and self.plan.total_steps > self.plan.steps_per_epoch:
            return VisionCache(self._loaded, room.bytes_for_features(self._loaded.compute.device, self._ranks.count))
        why = "the run sees no row twice" if sees_images else "the model reads text only"
        self._note_once(f"cache_vision_features has no effect: {why}.", "vision_cache")
        return None

    def _note_vision(self) -> None:
        """After the first epoch that was seen as a whole."""
        each = self.plan.steps_per_epoch
        if self._vision is not None and (self.state.step + 1) // each > -(-self._first_step // each):
            self._note_once(self._vision.told(), "vision_cache")

    def _note_logits(self) -> None:
        if needs_all_logits_at_once(self._loaded):
            self._note_once(
                "This model changes its logits in a way of its own, so those of a batch's trained tokens are made in "
                "one piece: if memory is short, lower batch_size.",
                "logits_at_once",
            )

    def _note_once(self, message: str, code: str) -> None:
        if code not in self._said:
            self._said.add(code)
            self._report.note(message, code)

    def _find_best(self) -> None:
        """The best checkpoint of earlier attempts was taken over with the newest ones, if it was whole."""
        best = self.state.best_checkpoint
        folder = self._work.folder.checkpoints / Path(best).name if best else None
        if folder is not None and folder.exists():
            self.state.best_checkpoint = self._name_of(folder)
        else:
            self.state.best_checkpoint = self.state.best_saved = None

    def _is_due(self, every: int) -> bool:
        return self.state.step % every == 0 or self._is_last()

    def _is_last(self) -> bool:
        return self.state.step == self.plan.total_steps or self.state.has_ended_early

    def _may_save(self) -> bool:
        """Not right after a skipped update: the next good one shows whether the run recovers."""
        return not self._optimisation.skipped_in_a_row or self._is_last()

    def _log(self, learning_rate: float, grad_norm: float) -> Metrics:
        self.state.train_loss = self.state.window.mean()
        self.state.window = Window()
        return self._report.log_training(
            self.state.step, self.state.train_loss, learning_rate, grad_norm, self._optimisation.skipped
        )

    def _show_untrained(self) -> None:
        validation = self._validation
        if validation is not None:
            answers = self._evaluated(validation, lambda: validation.samples(self._loaded, self._beat))
            self._report.samples(0, answers)

    def _evaluate(self, logged: Metrics) -> Metrics:
        """The scores; `logged` is what was logged at this step, which may be what the run is judged by."""
        validation = self._validation
        if validation is None:
            return {}
        try:
            measured, answers = self._evaluated(validation, lambda: validation.score(self._loaded, self._beat))
        except Stopped:
            raise
        except Exception:
            self._save_unscored()
            raise
        metrics = measured.named()
        self._report.log(self.state.step, metrics)
        self._report.samples(self.state.step, answers)
        self.state.note_scores(measured.loss, measured.scores.label_accuracy)
        self._judge(logged | metrics, metrics)
        return metrics

    def _judge(self, metrics: Metrics, scores: Metrics) -> None:
        """Compare with the best so far; without a better one for too long, the run ends here."""
        if self._goal.metric not in metrics:
            self._note_once(
                f"metric_for_best_model {self._goal.metric} was not measured at step {self.state.step}, so eval_loss "
                f"tells the best checkpoint. Measured were {', '.join(sorted(metrics))}.",
                "metric_for_best_model",
            )
            self._goal = goal.BY_LOSS
        value = self._goal.value_in(metrics)
        self.state.note_goal(self._goal, value, self._config.early_stopping_threshold, finite(scores))
        patience = self._config.early_stopping_patience
        if patience is not None and self.state.without_gain >= patience and not self._is_last():
            self.state.has_ended_early = True
            self._report.note(
                f"The run ends at step {self.state.step} of {self.plan.total_steps}: {self._goal.metric} has not "
                f"become better than {self.state.best} in {patience} evaluations (early_stopping_patience).",
                "early_stopping",
            )

    def _save(self, metrics: Metrics) -> None:
        """Metrics are those of this very step; only what is evaluated or judged by belongs to the checkpoint."""
        self._optimisation.check_weights()
        kept = {name: value for name, value in metrics.items() if name.startswith("eval_") or name == self._goal.metric}
        kept = finite(kept)
        folder = self._work.folder.checkpoints
        name = self._name_of(folder / f"step-{self.state.step}")
        self.state.note_checkpoint(name, self._goal, self._goal.value_in(kept))
        self._report.phase("saving")
        self._report.sync()  # the manifest counts the journal's lines
        self.checkpoint = checkpoints.write(folder, self._manifest(kept), self._fill, self._report.sync)
        self._report.checkpoint(self.checkpoint)
        self._is_save_due = False
        self._rotate()
        self._report.phase("training")

    def _rotate(self) -> None:
        work, best = self._work, self.state.best_checkpoint
        best_folder = work.root.path_of(best) if best else None
        checkpoints.rotate(work.folder.checkpoints, self._config.save_total_limit, best_folder, self._say_gone)
        checkpoints.discard_earlier(work.root, work.job_id, work.attempt, self._say_gone)

    def _say_gone(self, step: int, folder: Path) -> None:
        self._report.checkpoint_removed(step, folder)
        self._report.sync()

    def _fill(self, checkpoint: Checkpoint) -> None:
        """Write the files of a checkpoint."""
        if self._config.method == "full":
            self._loaded.model.save_pretrained(checkpoint.model)
            self._loaded.processor.save_pretrained(checkpoint.model)
        else:
            self._loaded.model.save_pretrained(checkpoint.model, save_embedding_layers=False)
        self.state.save(checkpoint.state, self._optimisation)

    def _manifest(self, metrics: Metrics) -> Manifest:
        return Manifest(
            job_id=self._work.job_id,
            attempt=self._work.attempt,
            step=self.state.step,
            method=self._config.method,
            model_name=self._config.model_name,
            metrics=metrics,
            judged_by=self._goal.metric,
            higher_is_better=self._goal.higher_is_better,
            bits=self._config.qlora_bits,
            lines=self._work.journal.lines,
        )

    def _save_unscored(self) -> None:
        if self._may_save() and (self.checkpoint is None or self.checkpoint.step != self.state.step):
            self._save({})

    def _save_and_stop(self) -> None:
        self._save_unscored()
        if self._work.stop.wanted == "pause":
            self._report.paused(self.state.step)
        raise Stopped

    def _beat(self) -> None:
        self._work.stop.check_cancel()
        self._report.progress(self.state.step)

    def _name_of(self, folder: Path) -> str:
        return self._work.root.name_of(folder)

    def _evaluated(self, validation: Validation, compute: Callable[[], T]) -> T:
        """What an evaluation gives, with fewer rows at once where memory is short."""
        while True:
            with self._evaluating():
                given = self._if_it_fits(compute, validation.at_once)
            if given is not None:
                return given
            device.give_back_memory(self._loaded.compute.device)
            validation.at_once //= 2
            self._note_once("Memory was too short: evaluations take fewer rows at once.", "fewer_rows_evaluated")

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Work beside the training, which must not change its course."""
        self._report.phase("evaluating")
        self._loaded.model.eval()
        with run_state.rng_untouched():
            yield
        trainable.train_mode(self._loaded)
        self._report.phase("training")
