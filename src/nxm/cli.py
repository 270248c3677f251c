"""The command `nxm`. Each subcommand imports its module when it runs, so that `nxm --help` needs no torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from nxm.command import run


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
    folder: Annotated[Path, typer.Argument(help="a from_pretrained folder with model.safetensors")],
    pattern: Annotated[
        str | None, typer.Option(help="check this pattern, such as 2:4, instead of the one in config.json")
    ] = None,
) -> None:
    """Check matrix by matrix whether a saved model obeys its sparsity pattern.

    Exit status 0: every matrix obeys; 1: one does not, or the folder cannot be read.
    """
    from nxm.check import check

    if not check(folder, pattern):
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="a from_pretrained folder with its tokenizer")],
    out: Annotated[Path, typer.Argument(help="the file to write; for torch-2of4 the folder")],
    to: Annotated[Literal["onnx", "onnx-int8", "torch-int8", "torch-2of4"], typer.Option(help="the format")],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="compare outputs on these (torch-int8: calibrate too): one example per line, a tab between sentences"
        ),
    ] = None,
    dtype: Annotated[
        Literal["bf16", "fp16", "int8"] | None, typer.Option(help="torch-2of4: type of the products; default: bf16")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="torch-2of4: pack only matrices whose 2:4 product is faster on this GPU")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="with --auto: sentences in a batch")] = None,
    length: Annotated[int | None, typer.Option(help="with --auto: tokens in each sentence")] = None,
) -> None:
    """Export a trained model in a format for deployment.

    Asserts the pattern that config.json names. Writes nothing if the outputs differ from the model's.

    nxm export sparse-model model.onnx --to onnx

    nxm export sparse-model packed --to torch-2of4 --auto --batch 32 --length 128
    """
    from nxm.export.formats import export

    export(folder, out, to, texts=texts, dtype=dtype, auto=auto, batch=batch, length=length)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="nxm")
