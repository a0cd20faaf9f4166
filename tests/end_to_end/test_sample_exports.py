"""Genuine SAM2 exports, kept beside the checkout where there are any: data work, every method, export, plain reload."""

import zipfile
from pathlib import Path

import pytest

from jobs.calls import Json

SAMPLES = Path(__file__).parents[3] / "shared" / "data"
NAMES = ("sav_000001_manual", "idoctor40_as_exported", "bedroom_classical")
METHODS = {"lora": {}, "qlora": {"use_qlora": True}, "full": {"use_lora": False}}

pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample exports in ../shared/data beside the checkout")


@pytest.fixture(scope="module", params=NAMES)
def prepared(request, house) -> dict[str, Json]:
    """format → answer of its stratified split, once every strategy has divided the dataset."""
    name = request.param
    uploaded = house.client.upload(SAMPLES / f"{name}.zip")
    return {data_format: _prepare(house, uploaded["file_path"], name, data_format) for data_format in _FORMATS}


_FORMATS = ("llava", "huggingface")


def _prepare(house, uploaded: str, name: str, data_format: str) -> Json:
    body = {"sam2_zip_path": uploaded, "output_dir": f"{name}/{data_format}", "target_format": data_format}
    converted = house.client.post("/api/data/convert", body)
    report = house.client.post("/api/data/validate", {"data_path": converted["output_dir"], "format_type": data_format})
    assert report["passed"], report["errors"]
    assert ("row" if "idoctor" in name else "column") == converted["mask_order"], converted["mask_order_reason"]
    splits = {}
    for strategy in ("temporal", "random", "stratified"):
        body = {"data_path": converted["output_dir"], "output_dir": f"{name}/{data_format}-{strategy}"}
        splits[strategy] = house.client.post("/api/data/split", body | {"strategy": strategy})
        counts = [splits[strategy][f"{part}_samples"] for part in ("train", "val", "test", "guard")]
        assert sum(counts) == converted["num_samples"]
    return splits["stratified"]


@pytest.mark.parametrize("method", METHODS)
def test_a_genuine_export_trains_and_its_model_reloads_in_plain_transformers(
    house, prepared, config, method, tmp_path
) -> None:
    data = prepared["huggingface" if method == "qlora" else "llava"]
    paths = {"train_data_path": data["train_path"], "val_data_path": None}
    short = {"max_steps": 20, "batch_size": 1, "gradient_accumulation_steps": 1, "save_steps": 20}
    job = house.run({"kind": "finetune", "config": config | short | paths | {"max_length": 1024} | METHODS[method]})
    assert job["status"] == "completed", job.get("failure_detail")
    export_format = "huggingface" if method == "full" else "lora_adapter"
    house.client.post(f"/api/export/{job['job_id']}", {"export_format": export_format})
    link = house.client.get(f"/api/export/{job['job_id']}/download")
    archive = tmp_path / link["filename"]
    house.client.download(link["download_url"], archive)
    zipfile.ZipFile(archive).extractall(tmp_path)
    _reload(house, next(path.parent for path in tmp_path.rglob("*config.json")), method)


def _reload(house, folder: Path, method: str) -> None:
    from peft import PeftModel
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    base = folder if method == "full" else house.root / "models" / "demo-llava"
    model = LlavaForConditionalGeneration.from_pretrained(base)
    if method != "full":
        model = PeftModel.from_pretrained(model, folder)
        assert any(bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name)
    assert AutoProcessor.from_pretrained(folder).chat_template
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
