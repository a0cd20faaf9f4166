"""Devices, slots and memory; the GPUs are played."""

from types import SimpleNamespace

import pytest

from gpu_runner import devices, host_memory
from gpu_runner.devices import Devices
from gpu_runner.host_memory import HostMemory
from jobs.settings import Settings
from jobs.specs import Slot

SETTINGS = Settings(cpu_slots=3, gpu_slots=2)
GIB = 2**30


class PlayedNvml:
    """Three GPUs, the third of which cannot tell its memory."""

    NVMLError = type("NVMLError", (Exception,), {})
    _uuids = ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbcc-3")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - NVML's own name, as the following
        return len(self._uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, gpu: int) -> bytes:  # noqa: N802
        return self._uuids[gpu].encode()

    def nvmlDeviceGetName(self, gpu: int) -> str:  # noqa: N802
        return f"Played GPU {gpu}"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> SimpleNamespace:  # noqa: N802
        if gpu == 2:
            raise self.NVMLError
        return SimpleNamespace(total=8 * GIB, free=(gpu + 1) * GIB)


def test_without_a_gpu_the_cpu_takes_both_sorts_of_work(monkeypatch) -> None:
    monkeypatch.setattr(devices, "import_module", _absent)
    found = Devices(SETTINGS, {})
    (cpu,) = found.read()
    assert not found.has_cuda
    assert (cpu.device_id, cpu.slots) == ("cpu", {Slot.CPU: 3, Slot.GPU: 2})
    assert cpu.name
    assert 0 < cpu.memory_free_bytes <= cpu.memory_total_bytes


def test_with_gpus_each_has_its_slots_and_the_cpu_keeps_one_for_small_models() -> None:
    cpu, first, second, third = Devices(SETTINGS, {}, PlayedNvml()).read()
    assert cpu.slots == {Slot.CPU: 3, Slot.GPU: 1}
    assert [device.device_id for device in (first, second, third)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert first.slots == {Slot.GPU: 2}
    assert (second.name, second.memory_total_bytes, second.memory_free_bytes) == ("Played GPU 1", 8 * GIB, 2 * GIB)
    assert third.memory_free_bytes is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["Played GPU 1"]),
        ("2,0", ["Played GPU 2", "Played GPU 0"]),
        ("GPU-aaaa", ["Played GPU 0"]),
        ("GPU-bb", []),  # two begin like this
        ("0,7,1", ["Played GPU 0"]),  # what is unknown ends the list
        ("-1", []),
        ("", []),
    ],
)
def test_devices_count_as_cuda_shows_them_to_a_child(visible, names) -> None:
    found = Devices(SETTINGS, {"CUDA_VISIBLE_DEVICES": visible}, PlayedNvml())
    assert [device.name for device in found.read()[1:]] == names
    assert found.has_cuda == bool(names)


def test_a_driver_that_does_not_answer_means_no_gpu(monkeypatch) -> None:
    broken = PlayedNvml()
    broken.nvmlInit = _raise(broken.NVMLError)
    monkeypatch.setattr(devices, "import_module", lambda _: broken)
    assert [device.device_id for device in Devices(SETTINGS, {}).read()] == ["cpu"]


def _absent(name: str) -> None:
    raise ImportError(name)


def _raise(error: type[Exception]):
    def call() -> None:
        raise error

    return call


def test_a_budget_stands_in_where_no_driver_measures(monkeypatch) -> None:
    monkeypatch.setattr(host_memory, "read", lambda: HostMemory(64 * GIB, 40 * GIB))
    budgeted = Devices(Settings(memory_budget_gib=24), {}, PlayedNvml())
    cpu, first, _, third = budgeted.read({"cpu": 4 * GIB, "cuda:2": 1 * GIB})
    assert (cpu.memory_total_bytes, cpu.memory_free_bytes) == (24 * GIB, 20 * GIB)
    assert (first.memory_total_bytes, first.memory_free_bytes) == (8 * GIB, 1 * GIB)
    assert (third.memory_total_bytes, third.memory_free_bytes) == (24 * GIB, 23 * GIB)
    monkeypatch.setattr(host_memory, "read", lambda: HostMemory(64 * GIB, 2 * GIB))
    assert budgeted.read()[0].memory_free_bytes == 2 * GIB  # no budget makes memory
