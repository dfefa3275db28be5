"""Controls that distil the teacher's logits after part of what they say is taken away: `kdstudy.trainables.controls`
says which part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kdstudy.stages.controls.control import DistilledControl, files_of
from kdstudy.trainables.seeds import small_seed

if TYPE_CHECKING:  # avoids importing torch, which a finished study does not need
    from kdstudy.trainables.task import Task


class ChangedLogitsControl(DistilledControl):
    """A control whose name is that of the change."""

    def task(self) -> Task:
        return replace(super().task(), control=self.kind, control_seed=small_seed(self.config.seed, self.kind))


class PlaceboControl(ChangedLogitsControl):
    name, kind = "control_placebo", "placebo"
    files = files_of(distils=True)


class PermutedControl(ChangedLogitsControl):
    name, kind = "control_permuted", "permuted"
    files = files_of(distils=True)


STAGES = (PlaceboControl, PermutedControl)
