"""Which task, format and model family suit what was found. Called by the convert recipe with what it wrote."""

from gpu_runner.sam2.manifest import Contents
from jobs.specs import DataFormat, TargetTask

_CROWD = 20  # objects a frame from which boxes make answers too long
_MANY_PICTURES = 50_000  # from here on one table is handier than so many files

_FAMILIES = {
    TargetTask.DETECT: "Qwen2.5-VL, Qwen3-VL and PaliGemma, which read and write coordinates",
    TargetTask.POINT: "Qwen2.5-VL and Qwen3-VL, which read and write coordinates",
    TargetTask.POLYGON: "Qwen3-VL and PaliGemma, which read and write coordinates",
    TargetTask.DESCRIBE: "LLaVA and SmolVLM",
    TargetTask.CLASSIFY: "LLaVA and SmolVLM",
}


def recommend(task: TargetTask, contents: Contents) -> str:
    """One sentence on what suits best, and one on the task that was chosen if it is another."""
    suited, because = _suited_task(contents)
    suited_format = DataFormat.HUGGINGFACE if contents.rows >= _MANY_PICTURES else DataFormat.LLAVA
    advice = f"{because}: task {suited} in format {suited_format} suits that, with {_FAMILIES[suited]}."
    if task is suited:
        return advice
    return f"{advice} For {task}, as asked, take {_FAMILIES[task]}."


def _suited_task(contents: Contents) -> tuple[TargetTask, str]:
    names = sum(1 for label in contents.labels if label)
    objects = contents.objects / max(1, contents.rows)
    if not names:
        return TargetTask.POINT, "No object has a name, only a place"
    if objects > _CROWD:
        return TargetTask.POINT, f"There are {objects:.0f} objects a frame"
    if objects > 1.05:
        return TargetTask.DETECT, f"There are {objects:.1f} objects a frame"
    if names == 1:
        return TargetTask.DETECT, "There is one class, so only the place of an object can be learned"
    return TargetTask.CLASSIFY, f"There is one object a frame, of {names} classes"
