"""Processors that read videos too, on a host without torchvision or num2words: pictures work, videos are refused.

Called by `models` before it loads a processor. Qwen2.5-VL and its relatives insist on a video processor, and those of
transformers 5 need torchvision; SmolVLM2's insists on num2words, with which it would count a video's frames. Rows have
pictures only. Settings of video processors are kept, so that what is saved again is whole.
"""

from typing import Any

from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import MODALITY_TO_BASE_CLASS_MAPPING
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor, VideoProcessorMixin


class NoVideo(VideoProcessorMixin):  # type: ignore[misc]  # transformers' mixin is untyped
    """Stands where a video processor is asked for; holds its settings."""

    num_frames = None
    fps = None

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise ValueError("videos need torchvision: install training-api[vision] on the runner")

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)


def allow() -> None:
    """Let processors load without torchvision and num2words; where they are there, nothing changes."""
    if processing_smolvlm.num2words is None:
        processing_smolvlm.num2words = _no_words
    if is_torchvision_available():
        return
    # The base class it names is among those that cannot be imported; this one is its parent.
    MODALITY_TO_BASE_CLASS_MAPPING["video_processor"] = "ImageProcessingMixin"
    AutoVideoProcessor.from_pretrained = _read_settings


def _read_settings(name: str, **options: Any) -> NoVideo:
    settings, _ = BaseVideoProcessor.get_video_processor_dict(name, **options)
    return NoVideo(**settings)


def _no_words(*_: Any, **__: Any) -> str:
    raise ValueError("videos of SmolVLM2 need num2words: install it on the runner")
