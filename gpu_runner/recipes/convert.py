"""convert: an export becomes a dataset folder, or is merged into one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import msgspec

from gpu_runner import forks
from gpu_runner.forks import Share
from gpu_runner.rows import open_rows
from gpu_runner.sam2 import advice, growth, manifest, output, probes, readers
from gpu_runner.sam2.conversion import Conversion, Converted, Converter, Pictureless
from gpu_runner.sam2.growth import Base, Merger
from gpu_runner.sam2.manifest import Contents, Left, Manifest, Options
from gpu_runner.sam2.orientation import Orientation
from gpu_runner.sam2.probes import Survey
from gpu_runner.sam2.readers import Export
from gpu_runner.sam2.rules import overlays
from gpu_runner.sam2.sources import Source, open_source
from gpu_runner.sam2.statistics import MOST_LABELS, largest
from gpu_runner.sam2.writers import CountingWriter, open_writer
from gpu_runner.work import Work
from jobs.models import model_roots
from jobs.results import ConvertResult
from jobs.specs import ConvertSpec, Kind, MaskOrder


def run(work: Work[ConvertSpec]) -> ConvertResult:
    """Raises DatasetInvalid, OutputTaken, DiskFull."""
    with output.staged(work.root, work.job_id, work.attempt) as staged:
        result = fill(work, staged.make(work.spec.output_dir, Kind.CONVERT))
    announce(work)
    return result


def announce(work: Work[ConvertSpec]) -> None:
    """Say that the dataset is in its place."""
    dataset = work.root.path_of(work.spec.output_dir)
    work.journal.artifact("dataset", dataset, output.size_bytes(dataset))


def fill(work: Work[ConvertSpec], folder: Path) -> ConvertResult:
    """Make the dataset in an empty folder. Raises DatasetInvalid, OutputTaken."""
    base = growth.open_base(work.root, work.spec, work.spec.add_to) if work.spec.add_to else None
    if base:  # what is new is worded like what is there
        work = replace(work, spec=msgspec.structs.replace(work.spec, seed=base.manifest.options.seed))
    with open_source(work.root, work.spec.sam2_zip_path, work.settings, work.stop.check) as source:
        work.journal.phase("reading")
        with readers.open_export(source, folder) as export:
            surveys = probes.survey(source, export.videos)
            orientation = _orientation(work, source, export, surveys)
            work.journal.phase("converting")
            contents = Contents(manifest.read_left_out(base.rows.dataset) if base else ())
            writer = CountingWriter(open_writer(work.spec, folder), contents)
            merger = _merger(work, base, writer, folder, export, _frames(surveys)) if base else None
            target = CountingWriter(merger, Contents()) if merger else writer
            converter = Converter(source, folder, work.spec, orientation.order)
            with Conversion(source, work.spec, export.where, target, contents.left_out) as conversion:
                total = _frames(surveys) + (len(base.rows) if base else 0)
                for done, made in enumerate(_convert_all(converter, export, surveys, work.cores), start=1):
                    work.stop.check()
                    conversion.add(made)
                    work.journal.progress(done, total)
                files = conversion.finish()
        made_of = manifest.Source(
            sha256=source.sha256(),
            upload=PurePosixPath(work.spec.sam2_zip_path).name,
            format=export.format,
            mask_order=orientation.order,
            mask_order_reason=orientation.reason,
        )
        files |= manifest.write_left_out(folder, contents.left_out)
        manifest.write_digests(folder, files)
        manifest.write(folder, _manifest(work.spec, base, made_of, contents, files))
        notes = [*_painted(work, folder), *_known(work.spec, base, made_of)]
    return _result(work, export, orientation, conversion, made_of, contents, merger, notes)


def _orientation(work: Work[ConvertSpec], source: Source, export: Export, surveys: Sequence[Survey]) -> Orientation:
    if work.spec.mask_order is not MaskOrder.AUTO:
        return Orientation(work.spec.mask_order, "declared by mask_order")
    if export.mask_order is not None:
        return Orientation(MaskOrder.COLUMN, export.mask_order)
    return probes.find_order(source, export.videos, surveys)


def _painted(work: Work[ConvertSpec], folder: Path) -> list[str]:
    """A warning where the tool painted its answers into the pictures: before anybody trains on them unchecked."""
    rows = open_rows(work.root, work.root.name_of(folder))
    return [f"{each.message} {each.remedy}" for each in overlays.find_in_sample(rows, work.spec.seed, work.stop.check)]


def _known(spec: ConvertSpec, base: Base | None, made_of: manifest.Source) -> list[str]:
    """A warning where a dataset grows by what it has. No refusal: an interrupted job does its work twice."""
    if base is None or made_of.sha256 not in {source.sha256 for source in base.manifest.sources}:
        return []
    return [f"{spec.add_to} has this very export already: its objects took their own places, none is there twice."]


def _frames(surveys: Sequence[Survey]) -> int:
    return sum(survey.frames for survey in surveys)


def _convert_all(
    converter: Converter, export: Export, surveys: Sequence[Survey], cores: int
) -> Iterator[Converted | Pictureless | Left]:
    """Every frame in order, by as many processes as there are cores. Each parses the annotations, which is cheap."""

    def convert(share: Share) -> Iterator[Converted | Pictureless | Left]:
        before = 0
        for video, survey in zip(export.videos, surveys, strict=True):
            for frame in video.annotations.frames(lambda number, before=before: share.includes(before + number)):
                yield converter.convert(video, survey.grid, frame)
            before += survey.frames

    return forks.share_in_order(convert, _frames(surveys), cores)


def _merger(
    work: Work[ConvertSpec], base: Base, writer: CountingWriter, folder: Path, export: Export, frames: int
) -> Merger:
    def tick(done: int) -> None:
        work.stop.check()
        work.journal.progress(frames + done, frames + len(base.rows))

    of_one_size = {video.video_id for video in export.videos if any(video.annotations.size)}
    return Merger(base, writer, folder, of_one_size, tick)


def _manifest(
    spec: ConvertSpec, base: Base | None, made_of: manifest.Source, contents: Contents, files: dict[str, str]
) -> Manifest:
    options = Options(
        target_format=spec.target_format,
        task=spec.task,
        mask_order=spec.mask_order,
        keep_empty_frames=spec.keep_empty_frames or (base is not None and base.manifest.options.keep_empty_frames),
        embed_images=spec.embed_images,
        seed=spec.seed,
    )
    earlier = tuple(source for source in (base.manifest.sources if base else ()) if source.sha256 != made_of.sha256)
    return manifest.of(options, (*earlier, made_of), contents, files)


def _result(
    work: Work[ConvertSpec],
    export: Export,
    orientation: Orientation,
    conversion: Conversion,
    made_of: manifest.Source,
    contents: Contents,
    merger: Merger | None,
    notes: Sequence[str],
) -> ConvertResult:
    spec, models = work.spec, model_roots(work.settings, work.root)
    grown = merger.growth if merger else None
    return ConvertResult(
        output_dir=spec.output_dir,
        num_samples=contents.rows,
        message=f"Videos: {len(export.videos)}, frames: {conversion.taken.rows}, objects: {conversion.taken.objects}, "
        f"classes: {len(conversion.taken.labels)}. {f'{grown.message(str(spec.add_to))} ' if grown else ''}"
        f"Written to {spec.output_dir}.",
        warnings=(*notes, *export.notes, *_warnings(orientation, conversion), *(grown.warnings() if grown else ())),
        skipped_frames=len(contents.left_out),
        num_objects=contents.objects,
        labels=largest(contents.labels, MOST_LABELS),
        mask_order=orientation.order,
        mask_order_reason=orientation.reason,
        source_format=export.format,
        source_sha256=made_of.sha256,
        recommendation=advice.recommend(spec.task, contents, spec.model_name, models),
    )


def _warnings(orientation: Orientation, conversion: Conversion) -> list[str]:
    said = [orientation.warning] if orientation.warning else []
    if conversion.skipped:
        said.append(f"{conversion.skipped} frames without objects were left out; keep_empty_frames keeps them.")
    if conversion.empty_masks:
        said.append(f"{conversion.empty_masks} objects with an empty mask were left out.")
    if conversion.boxes_corrected:
        said.append(
            f"{conversion.boxes_corrected} of {conversion.taken.objects} stated boxes were not those of their masks; "
            "all boxes were computed from the masks."
        )
    if conversion.scaled:
        (height, width), (image_width, image_height) = conversion.scaled
        said.append(
            f"The masks lie on a grid of {width}x{height}, the images have {image_width}x{image_height} pixels: boxes "
            "were scaled to the image, masks keep their grid."
        )
    return said
