"""Train a classifier of images into 2:4 with the Hugging Face Trainer and one callback.

    python examples/image_classification.py google/vit-base-patch16-224-in21k pets sparse-vit

The folder `pets` has one sub-folder of images per class. Afterwards `nxm check sparse-vit` verifies the pattern matrix
by matrix. `nxm compress` does more with the same folder: a dense teacher, held-out images, a report.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

from nxm import NM, AdmmCallback


def main(model_name: str, folder: str, out: str) -> None:
    """Train on the images of `folder` and save a `from_pretrained` folder at `out`."""
    images = load_dataset("imagefolder", data_dir=folder, split="train")
    classes = images.features["label"].names
    processor = AutoImageProcessor.from_pretrained(model_name)
    model = AutoModelForImageClassification.from_pretrained(
        model_name,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
        ignore_mismatched_sizes=True,  # a head for other classes is replaced
        use_safetensors=True,
    )

    def read(batch: dict[str, list[Any]]) -> dict[str, Any]:
        pixels = processor(images=[image.convert("RGB") for image in batch["image"]], return_tensors="pt")
        return {"pixel_values": pixels["pixel_values"], "labels": batch["label"]}

    args = TrainingArguments(
        output_dir=f"{out}-checkpoints",
        num_train_epochs=5,
        learning_rate=1e-4,  # several times that of fine-tuning: weights must move to the pattern and recover
        warmup_steps=0.3,
        remove_unused_columns=False,  # `read` needs the column of images
        report_to="none",
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=images.with_transform(read),  # each batch is read when it is needed
        processing_class=processor,
        callbacks=[AdmmCallback(NM(2, 4))],
    )
    trainer.train()
    trainer.save_model(out)
    print(f"saved: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
