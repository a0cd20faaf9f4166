"""The README's snippets run as they stand, one after the other, against a running service."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def test_the_snippets_start_a_training_poll_it_to_its_end_and_read_its_events(house, sample_zip, capsys) -> None:
    _prepare_what_make_demo_leaves_behind(house, sample_zip)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) == 4
    script = "\n".join(snippets)
    assert ADDRESS in script
    names: dict[str, object] = {}
    exec(compile(script.replace(ADDRESS, house.settings.address), "README.md", "exec"), names)
    names["api"].close()
    assert names["status"]["status"] == "completed", names["status"]
    printed = capsys.readouterr().out
    assert "100.0 %" in printed
    assert "JobCompleted" in printed


def _prepare_what_make_demo_leaves_behind(house, sample_zip) -> None:
    uploaded = house.client.upload(sample_zip)
    convert = {"kind": "convert", "sam2_zip_path": uploaded["file_path"], "output_dir": "demo", "task": "classify"}
    assert house.run(convert)["status"] == "completed"
    split = {"kind": "split", "data_path": "demo", "output_dir": "demo-split", "strategy": "temporal"}
    assert house.run(split)["status"] == "completed"
