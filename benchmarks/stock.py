"""The baseline of `train`: a script for transformers.Trainer as its documentation shows one for a model with eyes.

Its collator renders the chat template, pads to the longest row of the batch and supervises everything but padding.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gpu_runner.rows import Rows
from jobs.training_config import TrainingConfig

Collator = Callable[[Sequence[int]], dict[str, Any]]


@dataclass(frozen=True)
class Spent:
    """Wall and CPU seconds; as a point in time, since some moment."""

    seconds: float
    cpu: float

    @classmethod
    def now(cls) -> "Spent":
        return cls(time.perf_counter(), time.process_time())

    def since(self, earlier: "Spent") -> "Spent":
        return Spent(self.seconds - earlier.seconds, self.cpu - earlier.cpu)


class _Clock(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped
    """From the first step's begin to the last one's end."""

    began = Spent(0, 0)
    spent = Spent(0, 0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = Spent.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.spent = Spent.now().since(self.began)


def trained(model_folder: Path, config: TrainingConfig, rows: Rows, scratch: Path, collator: Collator) -> Spent:
    """Train adapters for one epoch with the hyper-parameters of `config`."""
    base = AutoModelForImageTextToText.from_pretrained(model_folder)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    )
    arguments = TrainingArguments(
        output_dir=str(scratch / "stock"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,
        lr_scheduler_type="cosine",
        max_grad_norm=config.max_grad_norm,
        num_train_epochs=config.num_epochs,
        logging_steps=config.logging_steps,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
        disable_tqdm=True,
        seed=config.seed,
    )
    clock = _Clock()
    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=arguments,
        train_dataset=range(len(rows)),
        data_collator=collator,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.spent


def collator_of(model_folder: Path, rows: Rows) -> Collator:
    """What a stock script does with the rows of a batch."""
    processor = AutoProcessor.from_pretrained(model_folder)

    def collate(indices: Sequence[int]) -> dict[str, Any]:
        texts = []
        for index in indices:
            question, answer = (turn.value.replace("<image>", "").strip() for turn in rows[index].conversations[:2])
            asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
            said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
            texts.append(processor.apply_chat_template([asked, said]))
        pictures = [rows.open_image(index) for index in indices]
        batch = dict(processor(text=texts, images=pictures, padding=True, return_tensors="pt"))
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        return {**batch, "labels": labels}

    return collate
