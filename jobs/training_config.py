"""How to fine-tune: every setting of a training, with its limits and the words a form shows beside it.

Part of `specs.FinetuneSpec`; `presets` are made of it, and the page draws its form from the schema.
"""

from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from jobs.values import MAX_LENGTH_LIMIT, ClientPath, JobId, ModelName, Seed, WantedDevice


def _field(group: str, title: str, description: str, *, advanced: bool = False, **limits: Any) -> Meta:
    """How a form shows a setting, and its limits; `advanced` ones are rarely changed."""
    extra = {"x-group": group} | ({"x-advanced": True} if advanced else {})
    shown: Meta = Meta(title=title, description=description, extra_json_schema=extra, **limits)
    return shown


_data = partial(_field, "model and data")
_method = partial(_field, "method")
_schedule = partial(_field, "schedule")
_saving = partial(_field, "saving and reporting")
_hardware = partial(_field, "hardware")

_STEPS_LIMIT = 10_000_000


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to fine-tune. `fp16` and `bf16` null mean: what the device does best."""

    model_name: Annotated[
        ModelName,
        _data("Model", "What to fine-tune: a known name, a folder below the model roots, or a hub repository."),
    ]
    train_data_path: Annotated[
        ClientPath, _data("Training data", "The rows to learn from: a dataset folder or the train.jsonl of a split.")
    ]
    val_data_path: Annotated[
        ClientPath | None,
        _data("Validation data", "Rows the run is judged by and never learns from; give them to find the best step."),
    ] = None
    max_length: Annotated[
        int,
        _data(
            "Longest row",
            "Tokens of a row with its picture; raise it when answers are cut, lower it to save memory.",
            ge=128,
            le=MAX_LENGTH_LIMIT,
        ),
    ] = 2048
    max_pixels: Annotated[
        Annotated[int, Meta(ge=1024, le=50_000_000)] | None,
        _data(
            "Largest picture",
            "Pixels; larger pictures are scaled down to it. Lower it where pictures take too many tokens.",
            advanced=True,
        ),
    ] = None
    continue_from: Annotated[
        JobId | None,
        _data(
            "Continue from",
            "Begin with the weights of another finetune job: the best of a completed one, else its newest.",
            advanced=True,
        ),
    ] = None
    continue_from_step: Annotated[
        Annotated[int, Meta(ge=1, le=_STEPS_LIMIT)] | None,
        _data("Continue from step", "Begin with this checkpoint of that job instead.", advanced=True),
    ] = None
    allow_invalid_data: Annotated[
        bool, _data("Allow invalid data", "Train although the last validation of the data failed.", advanced=True)
    ] = False

    use_lora: Annotated[
        bool, _method("LoRA", "Train small adapters beside a frozen base; without it every weight is trained.")
    ] = True
    use_qlora: Annotated[
        bool, _method("QLoRA", "Keep the frozen base in few bits, with LoRA on it; for a GPU too small for LoRA alone.")
    ] = False
    qlora_bits: Annotated[
        Literal[4, 8],
        _method(
            "QLoRA bits",
            "4 (NF4) takes the least memory; 8 (LLM.int8) is closer to the whole weights and needs a GPU.",
            advanced=True,
        ),
    ] = 4
    lora_rank: Annotated[
        int,
        _method("LoRA rank", "Size of the adapters; raise it when the model cannot take in the task.", ge=1, le=256),
    ] = 8
    lora_alpha: Annotated[
        int,
        _method("LoRA alpha", "Weight of the adapters, usually twice the rank; change both together.", ge=1, le=1024),
    ] = 16
    lora_dropout: Annotated[
        float,
        _method(
            "LoRA dropout",
            "Share of the adapters' inputs left out at random; raise it with little data.",
            advanced=True,
            ge=0,
            le=0.5,
        ),
    ] = 0.05

    num_epochs: Annotated[
        int,
        _schedule("Epochs", "How often every row is seen; fewer when the evaluation loss rises again.", ge=1, le=100),
    ] = 3
    batch_size: Annotated[
        int,
        _schedule("Batch size", "Rows computed at once; lower it when the device runs out of memory.", ge=1, le=128),
    ] = 4
    gradient_accumulation_steps: Annotated[
        int,
        _schedule(
            "Accumulation", "Batches added up before one update; raise it as you lower the batch size.", ge=1, le=128
        ),
    ] = 4
    learning_rate: Annotated[
        float,
        _schedule(
            "Learning rate",
            "How far one update goes; lower it when the loss jumps, raise it when it hardly falls.",
            ge=1e-6,
            le=1e-2,
        ),
    ] = 2e-4
    group_by_length: Annotated[
        bool,
        _schedule(
            "Group by length",
            "Rows of about the same length share a batch, so that little is padded; off mixes them wholly by chance.",
            advanced=True,
        ),
    ] = True
    warmup_ratio: Annotated[
        float,
        _schedule(
            "Warm-up",
            "Share of the steps in which the learning rate rises; more for short or unsteady runs.",
            ge=0,
            le=0.5,
        ),
    ] = 0.03
    max_steps: Annotated[
        Annotated[int, Meta(ge=1, le=_STEPS_LIMIT)] | None,
        _schedule("Step limit", "Ends the run early, after so many updates; for a quick trial.", advanced=True),
    ] = None
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit"],
        _schedule(
            "Optimiser",
            "adamw_8bit keeps its states in a quarter of the memory, less exactly: for full training on a GPU.",
            advanced=True,
        ),
    ] = "adamw"
    weight_decay: Annotated[
        float,
        _schedule("Weight decay", "Pulls weights towards zero; a little helps long runs.", advanced=True, ge=0, le=1),
    ] = 0.0
    max_grad_norm: Annotated[
        float,
        _schedule(
            "Gradient limit",
            "Longer gradients are scaled down to this; lower it when the loss jumps.",
            advanced=True,
            gt=0,
            le=1000,
        ),
    ] = 1.0
    seed: Annotated[
        Seed, _schedule("Seed", "Fixes all chance; change it to see how much luck was in a result.", advanced=True)
    ] = 42

    output_dir: Annotated[
        ClientPath | None,
        _saving("Label", "A label to find the run by; files go to the job's own folder.", advanced=True),
    ] = None
    save_steps: Annotated[
        int,
        _saving("Save every", "Steps between checkpoints; fewer when interruptions are likely.", ge=1, le=_STEPS_LIMIT),
    ] = 100
    eval_steps: Annotated[
        int, _saving("Evaluate every", "Steps between evaluations; more when they take long.", ge=1, le=_STEPS_LIMIT)
    ] = 100
    logging_steps: Annotated[
        int, _saving("Report every", "Steps between points of the curves; fewer for short runs.", ge=1, le=_STEPS_LIMIT)
    ] = 10
    save_total_limit: Annotated[
        int,
        _saving(
            "Checkpoints kept", "Older ones are removed, the best one stays; lower it to save disk space.", ge=1, le=10
        ),
    ] = 3

    metric_for_best_model: Annotated[
        str,
        _saving(
            "Judged by",
            "The metric that tells the best checkpoint, such as eval_loss, eval_accuracy or eval_box_iou.",
            advanced=True,
            pattern=r"^[a-z][a-z0-9_@.]{0,63}$",
        ),
    ] = "eval_loss"
    greater_is_better: Annotated[
        bool | None,
        _saving("Higher is better", "Left open, losses and errors should be low and all else high.", advanced=True),
    ] = None
    early_stopping_patience: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        _saving(
            "Patience",
            "Ends the run after so many evaluations in a row without a better one; left open, it runs to its end.",
        ),
    ] = None
    early_stopping_threshold: Annotated[
        float,
        _saving("Counts as better", "Gains up to this do not count for the patience.", advanced=True, ge=0, le=1000),
    ] = 0.0
    tensorboard: Annotated[
        bool, _saving("TensorBoard", "Write the curves as TensorBoard reads them as well.", advanced=True)
    ] = True

    device: Annotated[
        WantedDevice,
        _hardware("Device", "Where it runs: auto takes a GPU where there is one, cpu never waits for one."),
    ] = "auto"
    dataloader_workers: Annotated[
        int,
        _hardware(
            "Loading threads",
            "Threads that open and encode rows ahead; more when the GPU waits for pictures. Results stay the same.",
            advanced=True,
            ge=0,
            le=16,
        ),
    ] = 2
    num_processes: Annotated[
        int,
        _hardware(
            "Processes",
            "Processes that compute a part of each step, batch size rows each: on GPUs of one host, or on its cores.",
            advanced=True,
            ge=1,
            le=64,
        ),
    ] = 1
    bf16: Annotated[
        bool | None,
        _hardware("bf16", "Compute in bfloat16; leave it open to take what the device does best.", advanced=True),
    ] = None
    fp16: Annotated[
        bool | None, _hardware("fp16", "Compute in half precision; for a GPU that has no bfloat16.", advanced=True)
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        _hardware(
            "Recompute activations",
            "Keep little between the passes and compute it twice; slower and smaller. Open: for large models on a GPU.",
            advanced=True,
        ),
    ] = None
    cache_vision_features: Annotated[
        bool,
        _hardware(
            "Cache vision features",
            "For LoRA and QLoRA: the frozen eyes look at a picture once a run, not once an epoch; takes host memory.",
            advanced=True,
        ),
    ] = False
    priority: Annotated[
        int,
        _hardware(
            "Priority",
            "Higher starts first among waiting jobs; lower it for what can wait.",
            advanced=True,
            ge=-100,
            le=100,
        ),
    ] = 0
    preemptible: Annotated[
        bool,
        _hardware(
            "May be paused",
            "Jobs of higher priority may pause it: it saves its state, gives them its device, and goes on by itself.",
            advanced=True,
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 cannot both be true; leave both out to take what the device does best")
        if self.qlora_bits == 8 and not self.use_qlora:
            raise ValueError("qlora_bits 8 needs use_qlora: nothing else keeps the base in few bits")
        if self.continue_from_step is not None and self.continue_from is None:
            raise ValueError("continue_from_step needs continue_from: the job whose checkpoint it is")
        if self.cache_vision_features and self.method == "full":
            raise ValueError("cache_vision_features needs use_lora or use_qlora: full training changes what is seen")
        if self.early_stopping_patience is not None and self.val_data_path is None:
            raise ValueError("early_stopping_patience needs val_data_path: without it nothing is evaluated")

    @property
    def method(self) -> Literal["full", "lora", "qlora"]:
        if self.use_qlora:
            return "qlora"
        return "lora" if self.use_lora else "full"
