"""The baseline of `rest`: the same two routes as plain FastAPI with pydantic, and a dict instead of a database.

`python -m benchmarks.twin` serves it on TRAINING_PORT. It checks what the service's `TrainingConfig` checks of
values, and nothing else: no disk, no paths, no access rules. Whatever it accepted is lost when it ends.
"""

import os
import secrets
import time
from datetime import UTC, datetime
from typing import Annotated, Literal

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field, model_validator

Path = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"\S")]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_name: Annotated[str, Field(min_length=1, max_length=512, pattern=r"\S")]
    train_data_path: Path
    val_data_path: Path | None = None
    output_dir: Path | None = None
    use_lora: bool = True
    lora_rank: Annotated[int, Field(ge=1, le=256)] = 8
    lora_alpha: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_dropout: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    use_qlora: bool = False
    num_epochs: Annotated[int, Field(ge=1, le=100)] = 3
    max_steps: Steps | None = None
    batch_size: Annotated[int, Field(ge=1, le=128)] = 4
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=128)] = 4
    learning_rate: Annotated[float, Field(ge=1e-6, le=1e-2)] = 2e-4
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    max_length: Annotated[int, Field(ge=128, le=32768)] = 2048
    fp16: bool | None = None
    bf16: bool | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    save_steps: Steps = 100
    eval_steps: Steps = 100
    logging_steps: Steps = 10
    save_total_limit: Annotated[int, Field(ge=1, le=10)] = 3
    allow_invalid_data: bool = False
    continue_from: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def one_precision(self) -> "Config":
        if self.fp16 and self.bf16:
            raise ValueError("fp16 and bf16 cannot both be true")
        return self


class Training(BaseModel):
    model_config = ConfigDict(extra="forbid")

    config: Config
    experiment_name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=50)] = []


class Started(BaseModel):
    success: bool
    message: str
    job_id: str
    estimated_duration_minutes: float | None = None
    warnings: list[str] = []


class Progress(BaseModel):
    job_id: str
    status: Literal["pending", "queued", "running", "paused", "completed", "failed", "cancelled"] = "pending"
    current_epoch: int | None = None
    total_epochs: int | None = None
    current_step: int | None = None
    total_steps: int | None = None
    progress_percentage: float = 0.0
    eta_seconds: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    started_at: datetime | None = None
    updated_at: datetime
    completed_at: datetime | None = None
    error_message: str | None = None
    attempt: int = 1
    phase: str | None = None
    waiting_reason: str | None = None
    notes: list[str] = []


app = FastAPI()
jobs: dict[str, tuple[Training, Progress]] = {}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/api/train/start")
async def start(training: Training) -> Started:
    job_id = f"job_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"
    reason = "No runner is connected. Start one with `training-api runner`."
    jobs[job_id] = training, Progress(job_id=job_id, updated_at=datetime.now(UTC), waiting_reason=reason)
    message = f"Training {job_id} is pending; follow it at /api/train/{job_id}/status."
    return Started(success=True, job_id=job_id, message=message)


@app.get("/api/train/{job_id}/status")
async def status(job_id: str) -> Progress:
    if job_id not in jobs:
        raise HTTPException(404)
    return jobs[job_id][1]


if __name__ == "__main__":  # the settings of `service.serve`
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["TRAINING_PORT"]), server_header=False, access_log=False)
