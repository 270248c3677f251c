"""The command `nxm`. Each subcommand imports its module when it runs, so that `nxm --help` needs no torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from nxm.command import run
from nxm.errors import UserError


class _Group(TyperGroup):
    """Subcommands whose errors end as in `nxm.command.run`."""

    def invoke(self, ctx: Any) -> None:
        run(partial(super().invoke, ctx))


app = typer.Typer(
    cls=_Group,
    help="N:M sparsity for pretrained Transformers by ADMM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="a from_pretrained folder with safetensors, or a packed one")],
    pattern: Annotated[
        str | None, typer.Option(help="check this pattern, such as 2:4, instead of the one in config.json")
    ] = None,
) -> None:
    """Check matrix by matrix whether a saved model obeys its sparsity pattern and, with integers, lies on its grid.

    Prints the bits that a weight takes when packed, with positions and scales, for models with integers.

    Exit status 0: every matrix obeys; 1: one does not, is missing or has NaN, or the folder cannot be read.
    """
    from nxm.check import check

    if not check(folder, pattern):
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[
        Path,
        typer.Argument(help="a from_pretrained folder with its tokenizer or image processor, or a packed one"),
    ],
    out: Annotated[
        Path, typer.Argument(help="the file to write; for openvino, openvino-int8, packed and torch-2of4 a folder")
    ],
    to: Annotated[
        Literal[
            "onnx", "onnx-int8", "onnx-weight-only", "openvino", "openvino-int8", "torch-int8", "torch-2of4", "packed"
        ],
        typer.Option(help="the format"),
    ],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="compare outputs on these (torch-int8, openvino-int8: calibrate too): one example per line, a tab "
            "between sentences"
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="the same for a model of images: a folder of them; default: noise")
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "int8"] | None, typer.Option(help="torch-2of4: type of the products; default: bf16")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="torch-2of4: pack only matrices whose 2:4 product is faster on this GPU")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="with --auto: sentences in a batch")] = None,
    length: Annotated[int | None, typer.Option(help="with --auto: tokens in each sentence")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="score export and model on this: a study's prepared folder, or a .csv, .tsv or .parquet file; for a "
            "model of images a folder with one sub-folder per class"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="with --data: its task, such as stsb; a prepared folder has it")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="with --data: refuse an export whose score is more points (0 to 100) lower")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace OUT, if it is an earlier export in this format and nothing else")
    ] = False,
) -> None:
    """Export a trained model in a format for deployment.

    Asserts the pattern that config.json names. Writes nothing if the outputs differ from the model's, OUT exists, or
    the score on --data is lower by more than --max-drop.

    nxm export sparse-model model.onnx --to onnx

    nxm export sparse-model model.onnx --to onnx-int8 --data dev.csv --task stsb --max-drop 0.5

    nxm export sparse-vit vit.onnx --to onnx-int8 --images photos --data photos --max-drop 0.5

    nxm export sparse-model packed --to torch-2of4 --auto --batch 32 --length 128
    """
    from nxm.export.formats import export

    export(
        folder,
        out,
        to,
        texts=texts,
        images=images,
        dtype=dtype,
        auto=auto,
        batch=batch,
        length=length,
        data=data,
        task=task,
        max_drop=max_drop,
        force=force,
    )


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="a from_pretrained folder, or a model's name on the Hub")],
    train: Annotated[
        Path,
        typer.Option(
            help="labelled rows: .csv, .tsv, .parquet, .jsonl, a folder of `datasets`, or one with a sub-folder of "
            "images per class"
        ),
    ],
    to: Annotated[str, typer.Option(help='the set in which the weights end: "2:4", "1:4", "2:4 int8", "int4"')] = "2:4",
    out: Annotated[Path | None, typer.Option(help="the output folder; default: the model's name and the set")] = None,
    test: Annotated[Path | None, typer.Option(help="held-out rows; default: rows of --train are held out")] = None,
    text: Annotated[str | None, typer.Option(help="the column of the text, or of the first of two")] = None,
    text2: Annotated[str | None, typer.Option(help="the column of the second text")] = None,
    image: Annotated[str | None, typer.Option(help="the column of images, or of their paths")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="the column of the label; several: one 0/1 column for each label")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification, regression, multi-label, token-classification, question-answering or "
            "image-classification; default: by the data"
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="the score to compare, such as macro_f1; default: the task's")
    ] = None,
    recipe: Annotated[
        Literal["best", "paper"], typer.Option(help="best: with a dense teacher; paper: the paper's own, without")
    ] = "best",
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="fine-tune first even if the model has a head for these labels")
    ] = False,
    dense_epochs: Annotated[int, typer.Option(help="epochs of fine-tuning the dense model")] = 4,
    epochs: Annotated[int, typer.Option(help="epochs of compression")] = 5,
    dense_learning_rate: Annotated[float | None, typer.Option(help="default: by the model's width")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of the compression; default: by the width")] = None,
    batch_size: Annotated[int, typer.Option(help="examples per optimizer step")] = 32,
    max_length: Annotated[
        int | None, typer.Option(help="tokens after which a text is cut; default: what the model reads, at most 512")
    ] = None,
    held_out: Annotated[float, typer.Option(help="share of rows held out without --test, at most 2,000")] = 0.2,
    seed: Annotated[int, typer.Option(help="of the split, a new head, batches and dropout")] = 0,
    encoding: Annotated[str, typer.Option(help="of text files")] = "utf-8",
    export: Annotated[
        Literal[
            "onnx", "onnx-int8", "onnx-weight-only", "openvino", "openvino-int8", "torch-int8", "torch-2of4", "packed"
        ]
        | None,
        typer.Option(help="also write this format (nxm export)"),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="exit status 1 if the score is more points (0 to 100) lower than dense")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="time for the whole run, such as 2h or 90m")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan; train and write nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="start again where OUT holds an earlier run")] = False,
) -> None:
    """Compress your model on your data: fine-tune if needed, compress, check, export, measure, report.

    A killed run goes on by the same command. Exit status 0: done; 1: bad input, or more lost than --max-drop.

    nxm compress distilbert-base-uncased --train reviews.csv --to "2:4 int8" --max-drop 1.0

    nxm compress my-model --train train.csv --test test.csv --text body --label topic --export onnx-int8 --budget 2h
    """
    from nxm.compress.run import compress_model

    outcome = compress_model(
        model,
        train,
        label=tuple(label or ()),
        to=to,
        out=out,
        test=test,
        text=text,
        text2=text2,
        image=image,
        task=task,
        metric=metric,
        recipe=recipe,
        fine_tune=fine_tune,
        dense_epochs=dense_epochs,
        epochs=epochs,
        dense_learning_rate=dense_learning_rate,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        held_out=held_out,
        seed=seed,
        encoding=encoding,
        export=export,
        max_drop=max_drop,
        budget=budget,
        dry_run=dry_run,
        force=force,
    )
    if not outcome.passed:
        raise typer.Exit(1)


@app.command()
def bench(
    models: Annotated[
        list[Path] | None, typer.Argument(help="folders of saved models; none: products and encoders of random weights")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="default: cuda; of models the GPU, if there is one")
    ] = None,
    out: Annotated[Path, typer.Option(help="the folder for the result")] = Path("bench"),
    budget: Annotated[float, typer.Option(help="seconds to spend; what is worth least is left out")] = 600.0,
    batches: Annotated[str | None, typer.Option(help="of models: numbers of texts; default: 1,8")] = None,
    lengths: Annotated[str | None, typer.Option(help="of models: tokens of each text; default: 32,128")] = None,
    parts: Annotated[
        str | None, typer.Option(help="without models: some of proof,card,products,encoders,blocks; default: all")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="without models: list the units, measure nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="without models: measure again what a result has")] = False,
) -> None:
    """Measure what this machine gains: saved models in every form, or 2:4 in products and whole encoders.

    `nxm bench MODEL` times models in every form that the machine can run, over the first one in PyTorch fp32, with the
    kernels that ran. Without a model it needs no data and no network: products, encoders and blocks of random weights,
    dense and 2:4. After a kill, and with what was cut, a call with the same --out goes on.
    """
    if models:
        if idle := _given({"--parts": parts, "--dry-run": dry_run, "--force": force}):
            raise UserError(f"{idle}: for a bench without models alone; leave it out, or the models")
        from nxm.measure.saved import bench_models

        numbers = {
            "batch_sizes": _numbers("--batches", batches or "1,8"),
            "lengths": _numbers("--lengths", lengths or "32,128"),
        }
        bench_models(models, out, device_name=device, budget=budget, **numbers)
        return
    if idle := _given({"--batches": batches, "--lengths": lengths}):
        raise UserError(f"{idle}: for a bench of models alone; leave it out, or name a model")
    from nxm.measure.bench.run import PARTS, list_units, run_bench

    names = list(PARTS) if parts is None else [part.strip() for part in parts.split(",")]
    place = device or "cuda"
    if dry_run:
        list_units(place, names, budget)
    else:
        run_bench(out / f"{place}.json", place, budget=budget, parts=names, force=force)


def _given(options: dict[str, str | bool | None]) -> str:
    """Return the options that have a value, for messages."""
    return ", ".join(name for name, value in options.items() if value)


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes whole numbers with commas between them, such as 1,8, not '{text}'") from None


Study = Annotated[str, typer.Argument(help="embedded, or a folder of studies/")]
Jobs = Annotated[int | None, typer.Option(min=1, help="stages side by side; default: 2 on a CPU, 1 on a GPU")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="only what changed, not what is merely missing here: data and models")
]


@app.command()
def repro(study: Study = "embedded", jobs: Jobs = None, allow_missing: AllowMissing = False) -> None:
    """Run a study: every stage that is not done here, with progress and the time left.

    On a fresh clone, which has results but neither data nor models, that is all of it.
    """
    from nxm.launch.schedule import repro

    repro(Path.cwd(), study, jobs, allow_missing=allow_missing)


@app.command()
def plan(
    study: Study = "embedded",
    jobs: Jobs = None,
    allow_missing: AllowMissing = False,
    everything: Annotated[
        bool, typer.Option("--all", help="bring the generated files of all studies up to date, and stop")
    ] = False,
) -> None:
    """Say what `nxm repro` would run, and about how long that takes."""
    from nxm.launch.schedule import plan, write_all

    if everything:
        write_all(Path.cwd())
    else:
        plan(Path.cwd(), study, jobs, allow_missing=allow_missing)


@app.command()
def show(study: Study = "embedded") -> None:
    """Print what is committed of a study, without running anything."""
    from nxm.launch.schedule import show

    show(Path.cwd(), study)


@app.command()
def verify(
    study: Annotated[str | None, typer.Argument(help="embedded, or a folder of studies/; default: all")] = None,
    evidence: Annotated[
        bool, typer.Option("--evidence", help="compute the committed numbers again from the stored predictions")
    ] = False,
    against: Annotated[str, typer.Option(help="the revision whose results are the committed ones")] = "HEAD",
) -> None:
    """Say whether the results here are those that are committed, and whether the claims of the pages hold.

    Exit status 1: a result is missing, damaged, of another origin or beyond noise, or a claim does not hold.
    """
    from nxm.report.verdict import print_verdict, save_verdict, verify, verify_evidence

    root, names = Path.cwd(), None if study is None else [study]
    verdict = verify_evidence(root, names) if evidence else verify(root, names, against)
    print_verdict(verdict)
    if problem := save_verdict(root, verdict):
        typer.echo(problem, err=True)
    if not verdict.good:
        raise typer.Exit(1)


@app.command()
def pages(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit status 1 when a page is stale")] = False,
) -> None:
    """Render README.md and the studies' pages from their templates and the results files."""
    from nxm.report.page import stale_pages, write_pages

    changed = stale_pages(Path.cwd()) if check else write_pages(Path.cwd())
    for page in changed:
        print(f"{page.relative_to(Path.cwd())}: {'stale; run `nxm pages`' if check else 'written'}")
    if check and changed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="nxm")
