"""Settings of knowledge distillation."""

from __future__ import annotations

from pydantic import model_validator

from nxm.config import NonNegative, Positive, Settings


class Distillation(Settings):
    """The weights of the knowledge-distillation loss's terms (`nxm.distillation.loss.distillation_loss`)."""

    task: NonNegative  # the loss on the labels
    logits: NonNegative  # the distance to the teacher's logits
    hidden: NonNegative  # mean squared error of matching hidden states
    temperature: Positive  # classification only; regression matches the score itself

    @property
    def has_teacher(self) -> bool:
        """True if any term needs the teacher."""
        return self.logits > 0 or self.hidden > 0

    @model_validator(mode="after")
    def _a_teacher_teaches(self) -> Distillation:
        if not self.has_teacher and self.task != 1:
            raise ValueError(
                f"without logits and hidden there is no teacher, and task = {self.task:g} would change nothing: set 1"
            )
        return self


# The library's default, with which the study's students are trained: half the labels, half the teacher's logits, and
# its hidden states.
DISTILLATION = Distillation(task=0.5, logits=0.5, hidden=1.0, temperature=2.0)
