"""The loss on trained tokens alone is the plain one, for what models do to their logits, and makes few of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from gpu_runner.rows import open_rows
from gpu_runner.training import adapters, loss, models
from gpu_runner.training.device import Compute
from gpu_runner.training.encoding import NOT_TRAINED, collate
from gpu_runner.training.loss import needs_all_logits_at_once, summed_loss
from gpu_runner.training.models import Loaded
from gpu_runner.training.selection import everything
from gpu_runner.work import Work
from jobs.models import ModelSource, Origin
from jobs.paths import DataRoot
from jobs.training_config import TrainingConfig

VOCABULARY, ROWS, LENGTH, WIDTH = 512, 3, 24, 32
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
KNOWN = [
    LlamaConfig(**SMALL),
    Qwen2Config(**SMALL, tie_word_embeddings=True),
    Gemma2Config(**SMALL, final_logit_softcapping=0.5),
]
UNKNOWN = [CohereConfig(**SMALL, logit_scale=3.0), GraniteConfig(**SMALL, logits_scaling=4.0)]


def made(config: PretrainedConfig) -> Loaded:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    source = ModelSource(name="tiny", origin=Origin.FOLDER, location="")
    return Loaded(model.train(), None, source, Compute(torch.device("cpu"), torch.float32))


def batch() -> dict[str, torch.Tensor]:
    """Some tokens of each row are trained, the last one and the first one too."""
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = torch.full_like(ids, NOT_TRAINED)
    labels[0, -7:], labels[1, 3:9], labels[2, 0], labels[2, 20:] = ids[0, -7:], ids[1, 3:9], ids[2, 0], ids[2, 20:]
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain(loaded: Loaded, given: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: value for name, value in given.items() if name != "labels"}
    logits = loaded.model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = given["labels"][:, 1:]
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_TRAINED, reduction="sum")


def gradients(loaded: Loaded, value: torch.Tensor) -> dict[str, torch.Tensor]:
    loaded.model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[2**25, VOCABULARY * 4], ids=["one piece", "pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MOST_LOGITS", request.param)


def assert_same(loaded: Loaded, given: dict[str, torch.Tensor]) -> None:
    expected = plain(loaded, given)
    expected_gradients = gradients(loaded, expected)
    value, count = summed_loss(loaded, given)
    assert count == int((given["labels"][:, 1:] != NOT_TRAINED).sum())
    assert value.item() / count == pytest.approx(expected.item() / count, abs=1e-6)
    found = gradients(loaded, value)
    assert found.keys() == expected_gradients.keys()
    assert all((found[name] - expected_gradients[name]).abs().max() / count <= 1e-6 for name in found)


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("config", KNOWN + UNKNOWN, ids=lambda config: config.model_type)
def test_loss_and_gradients_are_the_plain_ones(config: PretrainedConfig) -> None:
    assert_same(made(config), batch())


@pytest.mark.usefixtures("_pieces")
def test_a_batch_with_pictures_under_adapters_has_the_plain_loss(
    root: DataRoot, work_for: Callable[..., Work[Any]], finetune_spec: Any
) -> None:
    loaded, given = adapted_llava(root, work_for(finetune_spec(lora_dropout=0)))
    assert_same(loaded, given)


def test_only_a_change_of_the_logits_that_is_not_known_needs_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MOST_LOGITS", VOCABULARY * 4)
    verdicts = {}
    for config in KNOWN + UNKNOWN:
        loaded = made(config)
        summed_loss(loaded, batch())
        verdicts[config.model_type] = needs_all_logits_at_once(loaded)
    assert verdicts == {"llama": False, "qwen2": False, "gemma2": False, "cohere": True, "granite": True}


class Largest(TorchDispatchMode):
    """Remembers the most logits any operation gave; what is WIDTH long is the head's own weight."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.shape[-1:] == (VOCABULARY,) and len(leaf) != WIDTH:
                self.found = max(self.found, leaf.numel())
        return out


@pytest.mark.parametrize(("limit", "tokens"), [(2**25, 17), (VOCABULARY * 4, 4)])
def test_logits_are_made_of_trained_tokens_only_and_of_a_piece_at_a_time(
    limit: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "MOST_LOGITS", limit)
    loaded = made(KNOWN[0])
    given = batch()
    with Largest() as largest:
        summed_loss(loaded, given)[0].backward()
    assert largest.found == tokens * VOCABULARY
    assert int((given["labels"][:, 1:] != NOT_TRAINED).sum()) == 17


def test_the_hooks_are_gone_even_when_the_model_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = made(KNOWN[0])
    given = batch()
    monkeypatch.setattr(loaded.model.model, "forward", fail)
    with pytest.raises(RuntimeError, match="planned"):
        summed_loss(loaded, given)
    head = loaded.model.get_output_embeddings()
    assert not head._forward_pre_hooks
    assert not head._forward_hooks


def test_frozen_eyes_and_projector_leave_no_graph(
    root: DataRoot, work_for: Callable[..., Work[Any]], finetune_spec: Any
) -> None:
    loaded, given = adapted_llava(root, work_for(finetune_spec()))
    with outputs_of(loaded.model.get_submodule("base_model.model.model")) as outputs:
        summed_loss(loaded, given)[0].backward()
    needing = {name for name, needs in outputs.items() if needs}
    assert {"vision_tower", "multi_modal_projector"} <= outputs.keys()
    assert not {name for name in needing if name.startswith(("vision_tower", "multi_modal_projector"))}
    assert "language_model" in needing


def adapted_llava(root: DataRoot, work: Work[Any]) -> tuple[Loaded, dict[str, torch.Tensor]]:
    config: TrainingConfig = work.spec.config
    source = models.source_of("demo-llava", root, work.settings)
    loaded = models.load_base(source, device="cpu", dtype=torch.float32, offline=True)
    adapted = adapters.attach(loaded.model, config).train()
    loaded = Loaded(adapted, loaded.processor, source, loaded.compute)
    rows = everything(open_rows(root, config.train_data_path))
    encoder = loaded.encoder(512)
    encoded = [encoder.encode(*rows.open(index)) for index in (0, 1, 2)]
    return loaded, collate(encoded, loaded.tokenizer.pad_token_id)


class outputs_of:  # noqa: N801 (reads as a sentence)
    """Whether the outputs of each module need gradients, by its name."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def __enter__(self) -> dict[str, bool]:
        found: dict[str, bool] = {}

        def note(name: str) -> Any:
            def hook(_: Any, __: Any, out: Any) -> None:
                found[name] = any(leaf.requires_grad for leaf in tensors_of(out))

            return hook

        self._hooks = [m.register_forward_hook(note(name)) for name, m in self._model.named_modules() if name]
        return found

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def tensors_of(out: Any) -> Iterator[torch.Tensor]:
    values = out.values() if isinstance(out, dict) else out if isinstance(out, tuple | list) else [out]
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | tuple | list):
            yield from tensors_of(value)


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("planned")
