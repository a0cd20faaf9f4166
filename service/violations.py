"""All violations of a JSON body at once. msgspec stops at the first, so on failure, only then, each field is
tried alone. Called by `problems`.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a request. `path` is the field, such as `config.lora_rank` or `tags[0]`."""

    path: str
    message: str


def find(raw: bytes, annotation: Any) -> tuple[Violation, ...]:
    """What is wrong with a body that should have been of a type; empty if it fits."""
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        return (
            Violation(path="", message=f"The body is not valid JSON: {error}" if raw else "A JSON body is required"),
        )
    return tuple(_of_value(data, annotation, ""))


def _of_value(data: Any, annotation: Any, path: str) -> Iterator[Violation]:
    """Violations inside the parts first; rules across parts only when every part is right."""
    inside = list(_of_parts(data, _expected(data, annotation), path))
    if inside:
        yield from inside
        return
    try:
        msgspec.convert(data, annotation)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        yield Violation(path=(path + place.rstrip("`")).lstrip("."), message=message)


def _of_parts(data: Any, kind: Any, path: str) -> Iterator[Violation]:
    if _is_struct(kind) and isinstance(data, dict):
        yield from _of_fields(data, kind, path)
    elif get_origin(kind) in (list, tuple) and isinstance(data, list):
        for index, item in enumerate(data):
            yield from _of_value(item, get_args(kind)[0], f"{path}[{index}]")


def _of_fields(data: dict[str, Any], struct: type[msgspec.Struct], path: str) -> Iterator[Violation]:
    hints = get_type_hints(struct, include_extras=True)
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for name, field in fields.items():
        place = f"{path}.{name}".lstrip(".")
        if name in data:
            yield from _of_value(data[name], hints[field.name], place)
        elif field.required:
            yield Violation(path=place, message="is required")
    if struct.__struct_config__.forbid_unknown_fields:
        for name in sorted(data.keys() - fields.keys() - {struct.__struct_config__.tag_field}):
            yield Violation(path=f"{path}.{name}".lstrip("."), message="is not a known field")


def _expected(data: Any, annotation: Any) -> Any:
    """The type a value is measured against: without Annotated, and the one member of a union it claims to be."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    structs = [member for member in map(_bare, get_args(annotation)) if _is_struct(member)]
    if len(structs) > 1 and isinstance(data, dict):
        structs = [struct for struct in structs if _has_tag(data, struct)]
    return structs[0] if len(structs) == 1 else annotation


def _has_tag(data: dict[str, Any], struct: type[msgspec.Struct]) -> bool:
    config = struct.__struct_config__
    return config.tag_field is not None and data.get(config.tag_field) == config.tag


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
