"""One configuration of `plan`, measured in a process of its own: real steps, and the most memory they held.

`python -m benchmarks.step CASE_JSON` builds a model with random weights, trains two updates with the product's own
adapters, loss and optimiser, and prints the bytes. What is measured is resident memory above what the process held
before the model: the peak since the model was there (VmHWM, reset through /proc/self/clear_refs). glibc is told by the
caller to give every block of 256 KiB back at once, so that resident memory follows the tensors that live.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def main(case: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    _steps(_loaded(_SMALLEST | {"config": case["config"]}), _SMALLEST | {"config": case["config"]})  # pools, kernels
    before = _status("VmRSS")
    loaded = _loaded(case)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now
    _steps(loaded, case)
    print(json.dumps({"bytes": _status("VmHWM") - before}))


_SMALLEST: dict[str, Any] = {
    "hidden": 64, "layers": 1, "heads": 2, "kv_heads": 2, "vocabulary": 512, "tokens": 128, "trained": 16, "vision": 0,
}  # fmt: skip


def model_config(case: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a case."""
    text = {
        "model_type": "llama", "hidden_size": case["hidden"], "intermediate_size": 3 * case["hidden"],
        "num_hidden_layers": case["layers"], "num_attention_heads": case["heads"],
        "num_key_value_heads": case["kv_heads"], "vocab_size": case["vocabulary"], "max_position_embeddings": 4096,
    }  # fmt: skip
    if not case["vision"]:
        return text
    vision = {
        "model_type": "clip_vision_model", "hidden_size": case["vision"], "intermediate_size": 4 * case["vision"],
        "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 224, "patch_size": 14, "projection_dim": 64,
    }  # fmt: skip
    return {
        "model_type": "llava", "text_config": text, "vision_config": vision, "image_seq_length": 256,
        "image_token_index": case["vocabulary"] - 1, "vision_feature_layer": -1,
    }  # fmt: skip


def _loaded(case: dict[str, Any]) -> Any:
    """The model as `trainable.load` would have it, without files or a processor."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    from gpu_runner.training import adapters, device, trainable
    from gpu_runner.training.models import Loaded
    from jobs.footprint import recomputes_activations
    from jobs.models import ModelSource, Origin
    from jobs.training_config import TrainingConfig

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    settings = TrainingConfig(model_name="m", train_data_path="d", **case["config"])
    compute, _ = device.for_training("cpu", settings)
    described = AutoConfig.for_model(**model_config(case))
    kind: Any = AutoModelForImageTextToText if case["vision"] else AutoModelForCausalLM
    dtype = torch.float32 if settings.method == "full" else compute.dtype
    model = kind.from_config(described, dtype=dtype)
    if settings.method == "qlora":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with torch.device("meta"):
                skeleton = kind.from_config(described)
            model = kind.from_pretrained(
                folder,
                dtype=dtype,
                quantization_config=adapters.quantisation(skeleton, dtype, settings.qlora_bits),
                device_map={"": "cpu"},
            )
        adapters.keep_gradients(model)
        _own_weights(model)
    if settings.method != "full":
        model = adapters.attach(model, settings)
    loaded = Loaded(model, None, ModelSource(name="m", origin=Origin.FOLDER, location="m"), compute)
    if recomputes_activations(settings, "cpu", 0):
        trainable.recompute_activations(loaded)
    trainable.train_mode(loaded)
    return loaded


def _own_weights(model: Any) -> None:
    """Copy each weight out of the file it is a view of. While one view lives the whole file stays mapped, and its
    pages count as resident although the kernel may drop them at need: they are no memory that a device must have."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    gc.collect()


def _steps(loaded: Any, case: dict[str, Any]) -> None:
    import torch

    from gpu_runner.training.loss import summed_loss
    from gpu_runner.training.optimisation import Optimisation
    from gpu_runner.training.ranks import Ranks
    from jobs.training_config import TrainingConfig

    settings = TrainingConfig(model_name="m", train_data_path="d", **case["config"])
    optimiser = Optimisation(loaded, settings, 2, Ranks())
    rows, tokens = settings.batch_size, case["tokens"]
    for _ in range(2):  # the optimiser's states are there from the second on
        for _ in range(settings.gradient_accumulation_steps):
            ids = torch.randint(5, case["vocabulary"] - 2, (rows, tokens))
            labels = torch.full_like(ids, -100)
            labels[:, -case["trained"] :] = ids[:, -case["trained"] :]
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            if case["vision"]:
                ids[:, 1:257] = case["vocabulary"] - 1
                batch["pixel_values"] = torch.rand(rows, 3, 224, 224)
            loss, count = summed_loss(loaded, batch)
            optimiser.backward(loss / count)
            del loss
        optimiser.step(1.0)


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
