"""Which task, format and model suit what was found. Called by the convert recipe with what it wrote.

Where somebody names the model that is to learn it, the advice is about that one; what is not known of it is said.
"""

from collections.abc import Sequence
from pathlib import Path

from gpu_runner.sam2.manifest import Contents
from jobs import support
from jobs.errors import InvalidInput
from jobs.model_config import family_of
from jobs.models import resolve
from jobs.specs import DataFormat, TargetTask
from jobs.support import FAMILIES, Family

_CROWD = 20  # objects a frame from which boxes make answers too long
_ABOUT_ONE = 1.05  # objects a frame up to which there is mostly one
_MANY_PICTURES = 50_000  # from here on one table is handier than so many files
_PLACES = (TargetTask.DETECT, TargetTask.POINT, TargetTask.POLYGON)  # answers that are coordinates before all


def recommend(
    task: TargetTask, contents: Contents, model_name: str | None = None, model_roots: Sequence[Path] = ()
) -> str:
    """What suits best, and what to make of the task that was chosen, in a few sentences.

    With a model name, looked up below `model_roots`, both are about that model.
    """
    if model_name is None:
        return _for_any(task, contents)
    try:
        family = family_of(resolve(model_name, model_roots))
    except InvalidInput as error:
        return f"{error.message} {_for_any(task, contents)}"
    if family is None:
        return (
            f"Nothing on this host says of which family {model_name} is, so this holds for any model: put its folder "
            f"below the model roots to be advised on it. {_for_any(task, contents)}"
        )
    why_not = support.why_not_family(family, "lora") or support.why_not_data(family, has_images=True)
    if why_not is not None:
        return f"{model_name} cannot learn this. {why_not} {_for_any(task, contents)}"
    return _for_one(task, contents, model_name, FAMILIES[family])


def _for_any(task: TargetTask, contents: Contents) -> str:
    suited, because = _suited_task(contents)
    advice = f"{because}: task {suited} in format {_suited_format(contents)} suits that, with {_families(suited)}."
    if task is suited:
        return advice
    return f"{advice} For {task}, as asked, take {_families(task)}."


def _for_one(task: TargetTask, contents: Contents, name: str, family: Family) -> str:
    """Of a model that sees pictures and can be trained."""
    suited, because = _suited_task(contents)
    within = suited if family.knows_places or suited not in _PLACES else _task_in_words(contents)
    lacks = f"{family.title} was not made to read and write coordinates"
    if within is None:
        return (
            f"{because}, and {lacks}: {name} will hardly learn from this data. Take {_families(suited)}, with task "
            f"{suited} in format {_suited_format(contents)}."
        )
    advice = f"{because}: task {within} in format {_suited_format(contents)} suits that and {name} ({family.title})."
    if task in _PLACES and not family.knows_places:
        return f"{advice} The task asked for, {task}, does not: {lacks}. Ask for {within}, or take {_families(task)}."
    if task is TargetTask.CLASSIFY and _counts(contents)[0] < 2:
        return f"{advice} With {task}, as asked, nearly every answer would be the same."
    return advice if task is within else f"{advice} It can learn {task}, as asked, too."


def _families(task: TargetTask) -> str:
    """The families for a task, as a sentence goes on."""
    if task not in _PLACES:
        tested = [family.title for family in FAMILIES.values() if family.sees_images and family.is_tested]
        return f"any model that sees pictures, such as {_either(tested)}"
    placing = [family.title for family in FAMILIES.values() if family.knows_places]
    return f"{_either(placing)}, which read and write coordinates"


def _either(titles: Sequence[str]) -> str:
    return f"{', '.join(titles[:-1])} or {titles[-1]}"


def _suited_format(contents: Contents) -> DataFormat:
    """Every model here is trained from either; what counts is how many files there are."""
    return DataFormat.HUGGINGFACE if contents.rows >= _MANY_PICTURES else DataFormat.LLAVA


def _suited_task(contents: Contents) -> tuple[TargetTask, str]:
    names, objects = _counts(contents)
    if not names:
        return TargetTask.POINT, "No object has a name, only a place"
    if objects > _CROWD:
        return TargetTask.POINT, f"There are {objects:.0f} objects a frame"
    if objects > _ABOUT_ONE:
        return TargetTask.DETECT, f"There are {objects:.1f} objects a frame"
    if names == 1:
        return TargetTask.DETECT, "There is one class, so only the place of an object can be learned"
    return TargetTask.CLASSIFY, f"There is one object a frame, of {names} classes"


def _task_in_words(contents: Contents) -> TargetTask | None:
    """What is left to learn where places are not; None where nothing is."""
    names, objects = _counts(contents)
    if names and _ABOUT_ONE < objects <= _CROWD:
        return TargetTask.DESCRIBE  # how many there are
    return TargetTask.CLASSIFY if names > 1 else None


def _counts(contents: Contents) -> tuple[int, float]:
    """How many classes have a name, and how many objects a row has."""
    return sum(1 for label in contents.labels if label), contents.objects / max(1, contents.rows)
