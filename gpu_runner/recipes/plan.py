"""plan: what a training would take, without training: parameters, tokens, steps; with a probe, measured memory too.

No weights are loaded unless it probes. What it takes on which device the service computes from this, because it
knows all devices and what earlier runs took.
"""

import time

import msgspec
import torch

from gpu_runner.rows import open_rows
from gpu_runner.training import counting, device, models, run_state, trainable
from gpu_runner.training.encoding import collate
from gpu_runner.training.loss import summed_loss
from gpu_runner.training.models import Described
from gpu_runner.training.optimisation import Optimisation
from gpu_runner.training.plan import Plan
from gpu_runner.training.ranks import Ranks
from gpu_runner.training.selection import Selection, everything, spread
from gpu_runner.training.survey import MOST_ROWS
from gpu_runner.work import Work
from jobs import footprint, support
from jobs.errors import ModelUnavailable
from jobs.model_shapes import ModelShape
from jobs.results import PlanResult, Probe, TokenCounts
from jobs.specs import PlanSpec

_PROBED_STEPS = 2  # the optimiser's states are there from the first update on


def run(work: Work[PlanSpec]) -> PlanResult:
    """Raises DatasetInvalid, ModelUnavailable, NoCapacity, OutOfMemory or DiskFull, or Stopped when asked to end."""
    torch.set_num_threads(work.cores)
    with device.errors_in_our_words():
        return _plan(work)


def _plan(work: Work[PlanSpec]) -> PlanResult:
    config = work.spec.config
    work.journal.phase("counting")
    source = models.source_of(config.model_name, work.root, work.settings)
    described = models.describe(source, offline=work.settings.hf_offline)
    rows = open_rows(work.root, config.train_data_path)
    _refuse_unknown(work, described, counting.has_pictures(rows))
    shape = counting.shape(described)
    work.stop.check()

    work.journal.phase("reading rows")
    chosen = spread(rows, MOST_ROWS)
    encoder, longest = described.encoder(config.max_length, config.max_pixels), list[int]()
    if encoder is None:
        tokens = counting.estimated_tokens(chosen, config, shape)
    else:
        tokens, longest = counting.tokens(chosen, encoder, work.stop.check)
    work.stop.check()

    parameters = shape.parameters
    trained = counting.trainable(described, config)
    probe = _probe(work, everything(rows), longest, shape, tokens) if work.spec.probe else None
    return PlanResult(
        parameters=parameters,
        trainable_parameters=trained,
        shape=shape,
        rows=len(rows),
        tokens=tokens,
        steps=Plan.of(config, len(rows)).total_steps,
        longest=described.longest,
        probe=probe,
        warnings=_warnings(source.name, tokens),
    )


def _refuse_unknown(work: Work[PlanSpec], described: Described, has_images: bool) -> None:
    family = described.family
    why = support.why_not_family(family, work.spec.config.method) or support.why_not_data(family, has_images)
    if why is not None:
        raise ModelUnavailable(why)


def _warnings(model_name: str, tokens: TokenCounts) -> tuple[str, ...]:
    if not tokens.is_estimated:
        return ()
    return (
        f"{model_name} could not be had here: its dimensions are known, its tokens are estimated from the length of "
        "the text.",
    )


def _probe(
    work: Work[PlanSpec], training: Selection, longest: list[int], shape: ModelShape, tokens: TokenCounts
) -> Probe:
    """Two real steps on the longest rows. The weights they change are thrown away with the process."""
    config = work.spec.config
    work.journal.phase("probing")
    run_state.seed_everything(config.seed)
    compute, _ = device.for_training(work.device, config)
    source = models.source_of(config.model_name, work.root, work.settings)
    models.check_capacity(source, work.device, config.device, offline=work.settings.hf_offline)
    loaded = trainable.load(source, config, compute, None, offline=work.settings.hf_offline)
    encoder = loaded.encoder(config.max_length, config.max_pixels)
    optimiser = Optimisation(loaded, config, _PROBED_STEPS, Ranks())
    chosen = (longest * config.batch_size)[: config.batch_size]
    seen, seconds = 0, 0.0
    for _ in range(_PROBED_STEPS):
        began, seen = time.monotonic(), 0
        for _ in range(min(2, config.gradient_accumulation_steps)):  # from the second on, gradients are held
            work.stop.check()
            batch = collate([encoder.encode(*training.open(index)) for index in chosen], loaded.tokenizer.pad_token_id)
            loss, count = summed_loss(loaded, batch)
            optimiser.backward(loss / count)
            seen += int(batch["attention_mask"].sum())
        optimiser.step(1.0)
        seconds = time.monotonic() - began  # of the last step, the first one warms up
    kind: footprint.DeviceType = "cuda" if compute.device.type == "cuda" else "cpu"
    alone = msgspec.structs.replace(config, num_processes=1)  # as the steps above ran
    predicted = footprint.estimate(alone, shape, counting.row_tokens(tokens), device=kind)
    return Probe(
        device=work.device,
        device_name=device.name(compute.device),
        peak_memory_bytes=device.peak_memory_bytes(compute.device),
        predicted_memory_bytes=predicted.expected_bytes,
        tokens_per_second=seen / max(seconds, 1e-9),
        rows=len(chosen),
    )
