"""Numbers that others have published, each with its source. None of them was measured here.

Those of the paper itself are made from `nxm.report.paper`. All are of other models, tasks and machines than ours, so
they place our results and are never one side of a ratio. Only numbers that were read at their source are here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nxm.report import labels, paper

# scores of 2:4 encoders, of 2:4 with integers learned together, score and speed of encoders with heads and rows
# removed, speed of 2:4 on GPUs, speed of INT8 on CPUs
Kind = Literal["score", "integers", "structured", "gpu", "cpu"]
NOT_MEASURED = "Not measured here: other models, data and machines, so no ratio to our numbers means anything."


@dataclass(frozen=True)
class Published:
    """A number as its source gives it.

    Attributes:
        subject: the model and task, or the operation and machine.
        reference: the number of the dense model or of the slower form; empty where the number is a ratio.
        value: the number of the compressed or faster form.
        source: the publication, with the place in it.
        link: the address of the source; a citation, which no page loads.
    """

    kind: Kind
    method: str
    subject: str
    quantity: str
    reference: str
    value: str
    source: str
    link: str


_COMPRESSOR = "neural-compressor, 2:4 with a teacher (README of its question-answering pruning example)"
_COMPRESSOR_TEXT = "neural-compressor, 2:4 with a teacher (README of its text-classification pruning example)"
_COMPRESSOR_LINK = "https://github.com/intel/neural-compressor"
_COMPRESSOR_CPU = "neural-compressor, table of validated models, 1.14.2"
_TUTORIAL = "PyTorch, tutorial on 2:4 sparsity"
_TUTORIAL_LINK = "https://github.com/pytorch/tutorials"
_SLIDE = "SlideSparse, appendix A, square products (searched 2:4 over searched dense)"
_SLIDE_LINK = "https://github.com/bcacdwk/vllmbench"
_SPEED_UP = "speed-up over dense"
MLPRUNING_SPEED_UP = 3.69  # at most, over dense, with about 20 % of the weights (its abstract)
_BLOCKS = "heads, rows and blocks"
_MLPRUNING = ("Yao et al. 2021, MLPruning (abstract)", "https://arxiv.org/abs/2105.14636")
_COFI = ("Xia et al. 2022, CoFi (README; V100, batch 128)", "https://github.com/princeton-nlp/CoFiPruning")
_NN_PRUNING = ("nn_pruning (model card; RTX 3090)", "https://github.com/huggingface/nn_pruning")


def _square(card: str, *gains: tuple[int, str]) -> list[Published]:
    return [
        Published("gpu", "2:4 product", f"{card}, {size} × {size}", _SPEED_UP, "", gain, _SLIDE, _SLIDE_LINK)
        for size, gain in gains
    ]


NUMBERS = (
    *(
        Published("score", "2:4, distilled", f"{model}, SQuAD", "F1", dense, sparse, _COMPRESSOR, _COMPRESSOR_LINK)
        for model, dense, sparse in (
            ("BERT-mini, mean", "76.62", "77.33"),
            ("DistilBERT", "86.90", "87.31"),
            ("BERT-base, mean", "88.59", "89.24"),
            ("BERT-large", "91.23", "91.67"),
        )
    ),
    Published(
        *("score", "2:4, distilled", "DistilBERT, MRPC", "score", "90.26", "90.88"), _COMPRESSOR_TEXT, _COMPRESSOR_LINK
    ),
    Published(
        *("score", "2:4, retrained (ASP)", "BERT-large, SQuAD", "F1", "91.9", "91.9"),
        "Mishra et al. 2021, Accelerating Sparse Deep Neural Networks",
        "https://arxiv.org/abs/2104.08378",
    ),
    Published(
        *("score", "2:4 in one shot, 1 epoch", "BERT-base-cased, SQuAD", "F1", "86.93", "86.49"),
        *(_TUTORIAL, _TUTORIAL_LINK),
    ),
    Published(
        *("score", "2:4 with INT8", "Megatron-large, SQuAD", "F1", "", "90.89"),
        "NVIDIA TensorRT, README of demo/BERT",
        "https://github.com/NVIDIA/TensorRT",
    ),
    Published(
        *("integers", "N:M and integers by ADMM", "HoloFormer, encoder, GLUE", "% of the dense score", "", "99.4"),
        "Holmes et al., HoloFormer (abstract; withdrawn from ICLR 2022)",
        "https://openreview.net/forum?id=eAEcdRkcMHh",
    ),
    *(
        Published(
            *("integers", "2:4 by ADMM with QAT", f"NxMiFormer, encoder {smaller} % smaller", "% of the dense score"),
            *("", share, "Holmes et al. 2022, NxMiFormer (abstract)", "https://arxiv.org/abs/2206.15014"),
        )
        for smaller, share in (("87.5", "99.5"), ("93", "98.2"))
    ),
    Published(
        *("structured", _BLOCKS, "BERT-base, about 20 % of the weights", "most speed-up over dense"),
        *("", f"{MLPRUNING_SPEED_UP:.2f}", *_MLPRUNING),
    ),
    *(
        Published("structured", "heads, rows and layers", f"BERT-base, {task}, {speed}×", metric, "", value, *_COFI)
        for task, metric, speed, value in (
            ("MNLI", "accuracy", "2.1", "85.3"),
            ("MNLI", "accuracy", "12.1", "80.6"),
            ("QNLI", "accuracy", "2.0 to 2.1", "91.8"),
            ("QNLI", "accuracy", "about 12", "86.1"),
            ("SST-2", "accuracy", "2.1", "93.0"),
            ("SST-2", "accuracy", "12.2", "90.4"),
            ("SQuAD", "F1", "2.0", "89.1"),
            ("SQuAD", "F1", "8.7", "82.6"),
        )
    ),
    Published("structured", _BLOCKS, "BERT-base, SQuAD, 1.84×", "F1", "88.5", "88.72", *_NN_PRUNING),
    *_square("A100, BF16", (1024, "1.19"), (4096, "1.71"), (8192, "1.52")),
    *_square("H100, BF16", (1024, "0.75"), (4096, "1.53"), (8192, "1.59")),
    *_square("H100, FP8", (1024, "0.73"), (4096, "1.53"), (8192, "1.54")),
    *_square("H100, INT8", (1024, "1.30"), (4096, "1.28"), (8192, "1.71")),
    *(
        Published("gpu", "2:4 encoder", f"BERT-base, A100, batch {batch}, eager", _SPEED_UP, "", gain, *tutorial)
        for tutorial in ((_TUTORIAL, _TUTORIAL_LINK),)
        for batch, gain in ((4, "0.71"), (16, "1.23"), (64, "1.22"), (256, "1.14"))
    ),
    *(
        Published("cpu", "INT8", f"{subject}, Xeon 8380, 4 cores", "sequences/s", fp32, int8, *source)
        for source in ((_COMPRESSOR_CPU, _COMPRESSOR_LINK),)
        for subject, fp32, int8 in (
            ("BERT-base, MRPC", "151", "497"),
            ("Sentence-BERT, STS-B", "152", "547"),
            ("MiniLM-L6, SST-2", "1084", "2595"),
        )
    ),
    Published(
        *("cpu", "INT8", "BERT-base, Cascade Lake, 8 cores, 1 × 128 tokens", "ms", "31.46", "19.76"),
        "ONNX Runtime, issue 6695",
        "https://github.com/microsoft/onnxruntime/issues/6695",
    ),
)


# NxMiFormer's two numbers as points: bits a weight, from the share of 32 bits that is saved, and percent of dense
BITS = ((32 * (1 - 0.875), 99.5), (32 * (1 - 0.93), 98.2))

_PAPER = ("Holmes et al. 2021, NxMTransformer", "https://arxiv.org/abs/2110.15766")
_BASES = {  # a run of the paper, with the one that its score is compared with
    **dict.fromkeys(("admm_unstructured", "asp", "nxm"), ("BERT-base", "dense")),
    "distil_nxm": ("DistilBERT", "distil"),
}


def of_paper(columns: Iterable[tuple[str, str]]) -> tuple[Published, ...]:
    """Return the paper's scores in some of its columns, given by name and label."""
    return tuple(
        Published(
            *("score", labels.run_label(run), f"{model}, {label}", "score × 100"),
            *(f"{paper.SCORES[base][column]:.1f}", f"{paper.SCORES[run][column]:.1f}"),
            *_PAPER,
        )
        for column, label in columns
        for run, (model, base) in _BASES.items()
        if column in paper.COLUMNS
    )


def of(*kinds: Kind) -> tuple[Published, ...]:
    """Return the published numbers of some kinds, in the order above."""
    return tuple(number for number in NUMBERS if number.kind in kinds)
