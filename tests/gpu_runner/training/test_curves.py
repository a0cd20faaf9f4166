"""TensorBoard reads the curves of a run."""

import struct
from pathlib import Path

import pytest
from runs import Build, Said, WorkFor
from tensorboardX.proto.event_pb2 import Event

from gpu_runner.recipes import finetune
from gpu_runner.work import Work
from jobs import events
from jobs.specs import FinetuneSpec


def test_curves_are_written_for_tensorboard(finetune_spec: Build, work_for: WorkFor, said: Said) -> None:
    work = work_for(finetune_spec())
    finetune.run(work)
    (file,) = work.folder.tensorboard.iterdir()
    expected = {
        (name, event.step): pytest.approx(value)
        for event in said(work, events.MetricsLogged)
        for name, value in event.values.items()
    }
    assert curves_in(file) == expected
    assert not finetune_run_without_curves(work_for(finetune_spec(**DATA, tensorboard=False), job_id="without"))


DATA = {"train_data_path": "datasets/train", "val_data_path": None, "max_steps": 1}


def finetune_run_without_curves(work: Work[FinetuneSpec]) -> bool:
    finetune.run(work)
    return work.folder.tensorboard.exists()


def curves_in(file: Path) -> dict[tuple[str, int], float]:
    """The scalars of an event file. Source: TFRecord: length (8 bytes), its crc (4), data, its crc (4); the crc is
    masked CRC32C."""
    content, found, at = file.read_bytes(), {}, 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        data = content[at + 12 : at + 12 + length]
        (checksum,) = struct.unpack_from("<I", content, at + 12 + length)
        crc = crc32c(data)
        assert checksum == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        event = Event.FromString(data)
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    return found


def crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, a bit at a time. Source: RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
