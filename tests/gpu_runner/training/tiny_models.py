"""Tiny random models of real architectures, each with the processor and the kind of chat template its family has.

Built in about a second, without any hub. `FAMILIES` names them; `build` writes one as a folder that `models` loads.
Widths are multiples of 64, the block of 4-bit quantisation.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from gpu_runner.training import without_video

IMAGE_PIXELS = 32
PATCH_PIXELS = 8

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
EYES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_PIXELS,
    "patch_size": PATCH_PIXELS,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}  # positions of Qwen's pictures
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_CORPUS = [
    "What colour is the object? red green blue yellow user assistant system human answer picture image and the"
] * 20


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: CLIP and Llama, a fixed number of image tokens, a template in the form of its own."""
    tokenizer = _tokenizer(["<image>"], image_token="<image>", adds_bos=True)
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(size=_square(), do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**EYES, projection_dim=64),
        text_config=tf.LlamaConfig(**TEXT, **_vocabulary(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return tf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: tiles by the picture's shape, so that rows differ in image tokens and in pixel values."""
    tokenizer = _tokenizer(["<image>"], image_token="<image>", adds_bos=True)
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    processor = tf.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_PIXELS}, crop_size=_square(), image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**EYES, projection_dim=64),
        text_config=tf.LlamaConfig(**TEXT, **_vocabulary(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return tf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: SigLIP and Qwen2. A picture alone in its row is seen in tiles too, several are not."""
    tokenizer = _tokenizer(["<image>", "<video>"], image_token="<image>", video_token="<video>")
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    without_video.allow()
    processor = tf.LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(size=_square(), image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=without_video.NoVideo(video_processor_type="LlavaOnevisionVideoProcessor"),
        num_image_tokens=(IMAGE_PIXELS // PATCH_PIXELS) ** 2,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION_TEMPLATE,
    )
    config = tf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **EYES, "vision_use_head": False},
        text_config={"model_type": "qwen2", **TEXT, **_vocabulary(tokenizer)},
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL: as Qwen2.5-VL, with eyes that see the whole picture in each layer."""
    tokenizer = _qwen_tokenizer()
    without_video.allow()
    processor = tf.Qwen2VLProcessor(
        image_processor=tf.Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}),
        tokenizer=tokenizer,
        video_processor=without_video.NoVideo(video_processor_type="Qwen2VLVideoProcessor", merge_size=2),
        chat_template=QWEN2_VL_TEMPLATE,
    )
    config = tf.Qwen2VLConfig(
        text_config={**TEXT, **_vocabulary(tokenizer), "rope_parameters": ROPE},
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2},
        **_qwen_ids(tokenizer),
    )
    return tf.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: any size of picture, patches in one long tensor with their grid beside it."""
    tokenizer = _qwen_tokenizer()
    without_video.allow()
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}),
        tokenizer=tokenizer,
        video_processor=without_video.NoVideo(video_processor_type="Qwen2VLVideoProcessor", merge_size=2),
        chat_template=_chatml(QWEN_PICTURE),
    )
    config = tf.Qwen2_5_VLConfig(
        text_config={**TEXT, **_vocabulary(tokenizer), "rope_parameters": ROPE},
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        **_qwen_ids(tokenizer),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: what layers of the eyes see goes into layers of the language model too (deepstack)."""
    tokenizer = _qwen_tokenizer()
    without_video.allow()
    processor = tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessorPil(
            patch_size=16,
            size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=without_video.NoVideo(video_processor_type="Qwen3VLVideoProcessor", merge_size=2),
        chat_template=_chatml(QWEN_PICTURE),  # of Qwen/Qwen3-VL-4B-Instruct, without tools and system turns
    )
    config = tf.Qwen3VLConfig(
        text_config={
            **TEXT,
            **_vocabulary(tokenizer),
            "head_dim": 16,
            "rope_parameters": {**ROPE, "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
        },
        **_qwen_ids(tokenizer),
    )
    return tf.Qwen3VLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """Gemma 3: image tokens see one another (token_type_ids), turns end with a token that is not the EOS."""
    marks = ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = _tokenizer(
        marks,
        adds_bos=True,
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessorPil(size=_square()),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )
    config = tf.Gemma3Config(
        text_config={
            **TEXT,
            **_vocabulary(tokenizer),
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 64,
        },
        vision_config=dict(EYES),
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    # It begins as zeros, so that all pictures would look alike.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, _id(tokenizer, "<end_of_turn>")]
    return model, processor


def idefics3() -> tuple[Any, Any]:
    """Idefics 3 and SmolVLM: a picture is cut into tiles, each with its mark; the model leaves out tiles that pad."""
    tokenizer = _idefics_tokenizer()
    processor = tf.Idefics3Processor(
        image_processor=tf.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * IMAGE_PIXELS}, max_image_size={"longest_edge": IMAGE_PIXELS}
        ),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    return _idefics(tf.Idefics3Config, tf.Idefics3ForConditionalGeneration, tokenizer), processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM2: tiles as Idefics 3 has them, and a processor that reads videos too."""
    tokenizer = _idefics_tokenizer()
    without_video.allow()
    processor = tf.SmolVLMProcessor(
        image_processor=SmolVLMImageProcessorPil(
            size={"longest_edge": 2 * IMAGE_PIXELS}, max_image_size={"longest_edge": IMAGE_PIXELS}
        ),
        tokenizer=tokenizer,
        video_processor=without_video.NoVideo(video_processor_type="SmolVLMVideoProcessor"),
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    return _idefics(tf.SmolVLMConfig, tf.SmolVLMForConditionalGeneration, tokenizer), processor


def _idefics(config_of: Any, model_of: Any, tokenizer: Any) -> Any:
    """The model that both have."""
    config = config_of(
        text_config=tf.LlamaConfig(**TEXT, **_vocabulary(tokenizer)),
        vision_config=dict(EYES),
        image_token_id=_id(tokenizer, "<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model_of(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, _id(tokenizer, "<end_of_utterance>")]
    return model


def internvl() -> tuple[Any, Any]:
    """InternVL: a picture is cut into as many tiles as suit its shape, and seen as a whole too."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(list(named.values()), **named)
    without_video.allow()
    processor = tf.InternVLProcessor(
        image_processor=GotOcr2ImageProcessorPil(size=_square(), crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=without_video.NoVideo(video_processor_type="InternVLVideoProcessor"),
        image_seq_length=4,
        chat_template=_chatml("<IMG_CONTEXT>\n"),  # of OpenGVLab/InternVL3-1B-hf
    )
    config = tf.InternVLConfig(
        vision_config={**EYES, "image_size": [IMAGE_PIXELS] * 2, "patch_size": [PATCH_PIXELS] * 2},
        text_config={"model_type": "qwen2", **TEXT, **_vocabulary(tokenizer)},
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return tf.InternVLForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    """PaliGemma: no chat template of its own; the prompt is seen as a whole, the answer word by word."""
    tokenizer = _tokenizer(["<image>"], image_token="<image>")
    eyes = SiglipImageProcessorPil(size=_square())
    eyes.image_seq_length = (IMAGE_PIXELS // PATCH_PIXELS) ** 2
    processor = tf.PaliGemmaProcessor(image_processor=eyes, tokenizer=tokenizer)
    config = tf.PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            **TEXT,
            **_vocabulary(tokenizer),
            "head_dim": 16,
            "use_bidirectional_attention": False,
        },
        vision_config={"model_type": "siglip_vision_model", **EYES, "projection_dim": 64, "vision_use_head": False},
        image_token_index=_id(tokenizer, "<image>"),
        projection_dim=64,
        hidden_size=64,
    )
    return tf.PaliGemmaForConditionalGeneration(config), processor


def llama() -> tuple[Any, Any]:
    """Llama, text only, whose template writes the BOS that the tokeniser would write too."""
    tokenizer = _tokenizer([], adds_bos=True)
    tokenizer.chat_template = "{{ bos_token }}" + _chatml("")
    return tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT, **_vocabulary(tokenizer))), tokenizer


def qwen() -> tuple[Any, Any]:
    """Qwen2, text only."""
    tokenizer = _tokenizer([])
    tokenizer.chat_template = _chatml("")
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**TEXT, **_vocabulary(tokenizer))), tokenizer


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    build.__name__: build
    for build in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        gemma3,
        idefics3,
        smolvlm,
        internvl,
        paligemma,
        llama,
        qwen,
    )
}
TEXT_ONLY = ("llama", "qwen")
SEEING = tuple(name for name in FAMILIES if name not in TEXT_ONLY)


def build(family: str, folder: Path) -> Path:
    """Write the family's model, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, processor = FAMILIES[family]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


LLAVA_TEMPLATE = (  # of llava-hf/llava-1.5-7b-hf
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION_TEMPLATE = (  # of llava-hf/llava-onevision-qwen2-7b-ov-hf; it asks with other blanks than it writes
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{# images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_VL_TEMPLATE = (  # of Qwen/Qwen2-VL-2B-Instruct, without numbers of pictures; it brings a system turn
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TEMPLATE = (  # of google/gemma-3-4b-it, without its system turn and its check of the order
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
SMOLVLM_TEMPLATE = (  # of HuggingFaceTB/SmolVLM-256M-Instruct and SmolVLM2-2.2B-Instruct
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _chatml(image: str) -> str:
    """The template of Qwen's models. Text models get their content as text, the others as parts."""
    parts = (
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}"
    )
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        + (parts if image else "{{ message['content'] }}")
        + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def _idefics_tokenizer() -> Any:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    return _tokenizer([*named.values(), *tiles], **named)


def _qwen_tokenizer() -> Any:
    named = {
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }
    return _tokenizer(list(named.values()), **named)


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    """What the configs of Qwen's models ask for."""
    return {
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
    }


def _tokenizer(marks: list[str], *, adds_bos: bool = False, **named: str) -> Any:
    """A byte-level BPE of 512 entries and more for the marks; `named` are those the processor asks for."""
    tokenizer = Tokenizer.from_str(_trained())
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    if adds_bos:
        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens=named,
        padding_side="right",
    )


@functools.cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _square() -> dict[str, int]:
    return {"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}
