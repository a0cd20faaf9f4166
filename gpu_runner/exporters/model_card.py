"""The model card of an export: what it is, what it was made from, the proof that it works, and how to load it.

Written as README.md into the export's model folder by the recipe `export`. The front matter is the model hub's.
Source: the hub's model card metadata (base_model, library_name, pipeline_tag, tags). The license is the user's to say.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import msgspec

from gpu_runner.exporters import dataset_facts, lora_adapter
from gpu_runner.exporters.trained_job import TrainedJob
from jobs.models import Origin
from jobs.paths import DataRoot
from jobs.specs import ExportFormat

_LIBRARIES = ("transformers", "peft", "torch", "safetensors")

_LOAD = {
    ExportFormat.HUGGINGFACE: """\
model = {auto}.from_pretrained(".")""",
    ExportFormat.LORA_ADAPTER: """\
base = {auto}.from_pretrained({base})
model = PeftModel.from_pretrained(base, ".")""",
}
_ASK_WITH_PICTURE = """\
import torch
from PIL import Image
{imports}

processor = AutoProcessor.from_pretrained(".")
{load}
question = [
    {{"type": "image", "image": Image.open("picture.jpg").convert("RGB")}},
    {{"type": "text", "text": "What is in this picture?"}},
]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
with torch.no_grad():
    answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
_ASK = """\
import torch
{imports}

tokenizer = AutoTokenizer.from_pretrained(".")
{load}
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello!"}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
with torch.no_grad():
    answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""

_MEANING = {
    "rows": "rows compared",
    "tokens": "tokens compared, all equal",
    "adapters_effect": "how much the adapters change the logits",
    "merged_vs_trained": "logits: merged in memory against adapters in memory",
    "reloaded_vs_trained": "logits: this folder, loaded from disk, against the trained model",
}


@dataclass(frozen=True)
class Facts:
    """What the card tells: the job, and what verification found, by the names of `ExportResult.verification`."""

    job: TrainedJob
    export_format: ExportFormat
    sees_images: bool
    verification: Mapping[str, float]
    tolerance: float


def render(facts: Facts, root: DataRoot) -> str:
    """The card as Markdown with YAML front matter."""
    sections = [
        _front_matter(facts),
        f"# {_plain(facts.job.name)}",
        _summary(facts),
        f"## How to load it\n\n{_loading(facts)}",
        f"## Verification\n\n{_verification(facts)}",
        f"## Results\n\n{_results(facts.job)}",
        f"## Data\n\n{_data(facts.job, root)}",
        f"## Training configuration\n\n{_configuration(facts.job)}",
        f"Made with {', '.join(f'{name} {version(name)}' for name in _LIBRARIES)}.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: Facts) -> str:
    """JSON strings are YAML strings, whatever characters a user's tag has."""
    is_adapter = facts.export_format is ExportFormat.LORA_ADAPTER
    tags = ["training-api", facts.job.method, *facts.job.spec.tags]
    lines = [
        f"base_model: {json.dumps(lora_adapter.base_name(facts.job.source))}",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        f"pipeline_tag: {'image-text-to-text' if facts.sees_images else 'text-generation'}",
        "tags:",
        *(f"  - {json.dumps(tag)}" for tag in dict.fromkeys(tags)),
        "# license: add the one you publish under; it must agree with the base model's and the data's",
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(facts: Facts) -> str:
    job = facts.job
    kind = {"full": "all weights trained", "lora": "LoRA", "qlora": f"LoRA on a {job.bits}-bit base"}[job.method]
    held = {
        ExportFormat.HUGGINGFACE: "whole model"
        if job.method == "full"
        else "adapters merged into the full-precision base",
        ExportFormat.LORA_ADAPTER: "adapters alone, to be put on the base model",
    }[facts.export_format]
    base = _plain(lora_adapter.base_name(job.source))
    return (
        f"`{base}` fine-tuned by job `{job.job_id}` ({kind}). This folder: {held}; checkpoint of {job.checkpoint_said}."
    )


def _loading(facts: Facts) -> str:
    is_adapter = facts.export_format is ExportFormat.LORA_ADAPTER
    auto = "AutoModelForImageTextToText" if facts.sees_images else "AutoModelForCausalLM"
    reader = "AutoProcessor" if facts.sees_images else "AutoTokenizer"
    imports = f"from transformers import {auto}, {reader}"
    code = (_ASK_WITH_PICTURE if facts.sees_images else _ASK).format(
        imports=f"from peft import PeftModel\n{imports}" if is_adapter else imports,
        load=_LOAD[facts.export_format].format(auto=auto, base=json.dumps(lora_adapter.base_name(facts.job.source))),
    )
    library = "peft" if is_adapter else "transformers"
    return f"In this folder, with plain {library}:\n\n```python\n{code}\n```{_where_base(facts)}"


def _where_base(facts: Facts) -> str:
    if facts.export_format is ExportFormat.HUGGINGFACE or facts.job.source.origin is Origin.HUB:
        return ""
    name = lora_adapter.base_name(facts.job.source)
    return (
        f"\n\nThe base model `{_plain(name)}` is a folder of the service that trained this, not a repository of a "
        "model hub: put a copy of it beside these files."
    )


def _verification(facts: Facts) -> str:
    rows = [(_MEANING[name], f"{value:g}") for name, value in facts.verification.items()]
    return (
        "Before this export was called done, it was loaded from disk and compared with the trained model. Differences "
        f"of logits are relative to the largest logit; up to {facts.tolerance:g} passes.\n\n"
        f"{_table(('check', 'value'), rows)}"
    )


def _results(job: TrainedJob) -> str:
    measured: dict[str, object] = dict(job.checkpoint.manifest.metrics)
    if job.result:
        best = {
            name: getattr(job.result, name) for name in ("final_train_loss", "best_eval_loss", "best_eval_accuracy")
        }
        measured |= {"steps": job.result.steps, **best}
    known = {name: value for name, value in measured.items() if value is not None}
    return _table(("metric", "value"), [(name, _spelled(value)) for name, value in known.items()])


def _data(job: TrainedJob, root: DataRoot) -> str:
    config = job.spec.config
    named = {"training": config.train_data_path, "evaluation": config.val_data_path}
    rows = []
    for use, name in named.items():
        found = dataset_facts.find(root, name) if name else None
        if found:
            rows.append((use, _plain(found.name), str(found.rows), f"`{found.sha256}`"))
        elif name:
            rows.append((use, _plain(name), "not there any more", ""))
    return _table(("use", "name", "rows", "SHA-256 of the rows, when exported"), rows)


def _configuration(job: TrainedJob) -> str:
    config = msgspec.to_builtins(job.spec.config)
    return _table(
        ("setting", "value"), [(name, _spelled(value)) for name, value in config.items() if value is not None]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _spelled(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else _plain(str(value))


def _plain(text: str) -> str:
    """A user's words, which shall not become Markdown or HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
