"""The baseline of `start`: what a stock script does before its first step, in a Python process of its own.

`python -m benchmarks.fresh MODEL_FOLDER TRAIN_JSONL` imports transformers and peft, loads the model, puts adapters on
it, does one optimiser step on the first row and says `stepped`.
"""

import json
import sys
from pathlib import Path


def main(model_folder: str, rows: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model_folder)  # type: ignore[no-untyped-call]
    base = LlavaForConditionalGeneration.from_pretrained(model_folder)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj")
    model = get_peft_model(base, lora).train()
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-4)

    row = json.loads(Path(rows).read_text().partition("\n")[0])
    question, answer = (turn["value"].replace("<image>", "").strip() for turn in row["conversations"][:2])
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    text = processor.apply_chat_template([asked, said])
    batch = processor(images=Image.open(Path(rows).parent / row["image"]), text=text, return_tensors="pt")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimiser.step()
    print("stepped", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
