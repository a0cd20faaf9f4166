"""convert: a SAM2 export becomes a dataset folder."""

from collections.abc import Sequence
from pathlib import Path

from gpu_runner.sam2 import export, manifest, output, probes
from gpu_runner.sam2.conversion import Conversion
from gpu_runner.sam2.export import VideoExport
from gpu_runner.sam2.manifest import Manifest, Options
from gpu_runner.sam2.masks import Grid
from gpu_runner.sam2.orientation import Orientation
from gpu_runner.work import Work
from jobs.archive import Archive
from jobs.errors import DatasetInvalid
from jobs.results import ConvertResult
from jobs.specs import ConvertSpec, Kind, MaskOrder


def run(work: Work[ConvertSpec]) -> ConvertResult:
    """Raises DatasetInvalid, OutputTaken, DiskFull."""
    source = work.root.path_of(work.spec.sam2_zip_path)
    if not source.is_file():
        raise DatasetInvalid(f"{work.spec.sam2_zip_path} is no file: upload the export as a .zip first.")
    with (
        output.staged(work.root, work.spec.output_dir, Kind.CONVERT, work.job_id, work.attempt) as folder,
        Archive(source, work.settings, work.stop.check) as archive,
    ):
        work.journal.phase("reading")
        videos = export.read_videos(archive, folder)
        grids = [probes.find_grid(archive, video) for video in videos]
        orientation = _orientation(work, archive, videos, grids)
        work.journal.phase("converting")
        with Conversion(archive, folder, work.spec, orientation.order) as conversion:
            _convert_frames(work, conversion, videos, grids)
            files = conversion.finish()
        manifest.write(folder, _manifest(work, source, videos, orientation, conversion, files))
    target = work.root.path_of(work.spec.output_dir)
    work.journal.artifact("dataset", target, sum((target / name).stat().st_size for name in files))
    return _result(work.spec, videos, orientation, conversion)


def _orientation(
    work: Work[ConvertSpec], archive: Archive, videos: Sequence[VideoExport], grids: Sequence[Grid]
) -> Orientation:
    if work.spec.mask_order is not MaskOrder.AUTO:
        return Orientation(work.spec.mask_order, "declared by mask_order")
    return probes.find_order(archive, videos, grids)


def _convert_frames(
    work: Work[ConvertSpec], conversion: Conversion, videos: Sequence[VideoExport], grids: Sequence[Grid]
) -> None:
    done, total = 0, sum(len(video.annotations) for video in videos)
    for video, grid in zip(videos, grids, strict=True):
        for frame in video.annotations.frames():
            work.stop.check()
            conversion.convert(video, grid, frame)
            done += 1
            work.journal.progress(done, total)


def _manifest(
    work: Work[ConvertSpec],
    source: Path,
    videos: Sequence[VideoExport],
    orientation: Orientation,
    conversion: Conversion,
    files: dict[str, str],
) -> Manifest:
    spec = work.spec
    return Manifest(
        made_by=Kind.CONVERT,
        software_version=manifest.software_version(),
        source_sha256=manifest.sha256_of(source),
        options=Options(
            target_format=spec.target_format,
            task=spec.task,
            mask_order=spec.mask_order,
            keep_empty_frames=spec.keep_empty_frames,
            seed=spec.seed,
        ),
        mask_order=orientation.order,
        videos=tuple(video.video_id for video in videos),
        rows=conversion.rows,
        objects=conversion.framer.objects,
        skipped_frames=conversion.skipped,
        labels=dict(conversion.framer.labels),
        files=files,
    )


def _result(
    spec: ConvertSpec, videos: Sequence[VideoExport], orientation: Orientation, conversion: Conversion
) -> ConvertResult:
    framer = conversion.framer
    return ConvertResult(
        output_dir=spec.output_dir,
        num_samples=conversion.rows,
        message=f"Videos: {len(videos)}, frames: {conversion.rows}, objects: {framer.objects}, classes: "
        f"{len(framer.labels)}. Written to {spec.output_dir}.",
        warnings=tuple(_warnings(orientation, conversion)),
        skipped_frames=conversion.skipped,
        num_objects=framer.objects,
        labels=dict(framer.labels),
        mask_order=orientation.order,
        mask_order_reason=orientation.reason,
    )


def _warnings(orientation: Orientation, conversion: Conversion) -> list[str]:
    framer = conversion.framer
    said = [orientation.warning] if orientation.warning else []
    if conversion.skipped:
        said.append(f"{conversion.skipped} frames without objects were left out; keep_empty_frames keeps them.")
    if framer.empty_masks:
        said.append(f"{framer.empty_masks} objects with an empty mask were left out.")
    if framer.boxes_corrected:
        said.append(
            f"{framer.boxes_corrected} of {framer.objects} stated boxes were not those of their masks; all boxes were "
            "computed from the masks."
        )
    if framer.scaled:
        (height, width), (image_width, image_height) = framer.scaled
        said.append(
            f"The masks lie on a grid of {width}x{height}, the images have {image_width}x{image_height} pixels: boxes "
            "were scaled to the image, masks keep their grid."
        )
    return said
