"""Looking into an export takes little, whatever lies where a picture is looked for."""

import json
import zipfile
from typing import Any

import pytest

from gpu_runner import images
from gpu_runner.sam2 import probes, readers
from gpu_runner.sam2.sources import Zip
from jobs.paths import DataRoot
from jobs.settings import Settings


class Metered(Zip):
    """Counts what is read out of it."""

    copied = 0

    def open(self, name: str) -> Any:
        opened = super().open(name)
        read = opened.read

        def metered(size: int = -1) -> bytes:
            block = read(size)
            self.copied += len(block)
            return block

        opened.read = metered  # type: ignore[method-assign]
        return opened


@pytest.mark.parametrize("runs", ["0 2 2", {"counts": [0, 2, 2], "size": [2, 2]}])
def test_a_picture_beyond_the_limit_is_not_read_to_its_end(
    runs: Any, root: DataRoot, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PICTURE_BYTES", 1 << 19)
    stated = {"object_id": 1, "label": "a", "mask_rle": runs, "bbox": [0, 0, 1, 2]}
    with zipfile.ZipFile(root.uploads / "export.zip", "w") as archive:
        archive.writestr("annotations.json", json.dumps({"annotations": [build.frame(0, stated)]}))
        archive.writestr("frame_000000.png", build.png(2, 2) + bytes(8 << 20))
    with (
        Metered(root.uploads / "export.zip", Settings()) as source,
        readers.open_export(source, root.uploads) as export,
    ):
        surveys = probes.survey(source, export.videos)
        probes.find_order(source, export.videos, surveys)
        assert surveys[0].grid == (2, 2)
    assert 0 < source.copied < 2 << 20
