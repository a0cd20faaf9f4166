"""demo-llava: a small real LLaVA, made from a fixed seed where no model hub can be asked.

`models.load_base` asks for it at first use. It knows nothing yet: full fine-tuning teaches it the colours of a few
hundred frames within a minute or two on two cores, which proves every joint of the product on a laptop.
"""

import secrets
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from gpu_runner.rows import IMAGE_MARK

SEED = 7
IMAGE_PIXELS = 64
PATCH_PIXELS = 8
IMAGE_TOKENS = (IMAGE_PIXELS // PATCH_PIXELS) ** 2
LONGEST = 32768  # tokens; positions are rotary, so a long limit costs no parameters
VOCABULARY = 512
BOS, EOS, TURN, PAD = "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<pad>"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Byte-level BPE can spell anything; these lines only make frequent words short.
_CORPUS = [
    "system user assistant",
    "What colour is the object? What color is it? Which objects are in this image? Name every object you can see.",
    "Describe the picture. Describe this image in detail. List all objects with their bounding boxes as JSON.",
    "red green blue yellow black white orange purple pink brown grey cyan magenta",
    "The image shows a person, a car, a dog, a cat, a ball, a chair, a table, a bed, a lamp and a window.",
    "There is one object in the frame, at the left, at the right, in the centre, at the top, at the bottom.",
    '[{"label": "object", "box": [0, 100, 250, 500, 1000]}]',
    "0 1 2 3 4 5 6 7 8 9 10 20 30 40 50 60 70 80 90 100 200 300 400 500 600 700 800 900",
]


def ensure(folder: Path) -> Path:
    """The model's folder, built now if it is not there; several builders at once end with one whole folder."""
    if not (folder / "config.json").is_file():
        _build_into_place(folder)
    return folder


def build(folder: Path) -> None:
    """Write the model, its tokeniser and its processor. The same bytes every time; the caller's RNG is untouched."""
    processor = _processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlavaForConditionalGeneration(_config(processor.tokenizer))
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _build_into_place(folder: Path) -> None:
    staging = folder.parent / f".{folder.name}-{secrets.token_hex(6)}"
    staging.mkdir(parents=True)
    try:
        build(staging)
        staging.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
    finally:  # what another builder has already put in place wins
        shutil.rmtree(staging, ignore_errors=True)


def _config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Widths are multiples of 64: the block of 4-bit quantisation."""
    image_token = tokenizer.get_vocab()[IMAGE_MARK]
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_PIXELS,
            patch_size=PATCH_PIXELS,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LONGEST,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
    )


def _processor() -> LlavaProcessor:
    """The Pil image processor, because the default one needs torchvision; uncropped, because objects lie at edges."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": IMAGE_PIXELS, "width": IMAGE_PIXELS}, do_center_crop=False
        ),
        tokenizer=_tokenizer(),
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, TURN, EOS, PAD, IMAGE_MARK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=LONGEST,
        extra_special_tokens={"image_token": IMAGE_MARK},
    )
