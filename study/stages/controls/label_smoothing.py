"""The control `label_smoothing`: the student trained on smoothed labels, without a teacher. How much they are smoothed
is tuned together with what the baseline tunes, in a search with the baseline's budget."""

from __future__ import annotations

from typing import Any

from kdstudy.stages.controls.control import Basis, ControlStage, OfControl, files_of
from kdstudy.stages.looks import STAGES as CONFIRMATIONS
from kdstudy.stages.search import ORIGINS, SearchDone, SearchStage
from kdstudy.store.schema import StageFiles


class LabelSmoothingSearch(OfControl, SearchStage):
    """Its best trial wins; there are no finalists."""

    name = arm = kind = "label_smoothing"
    loop = "baseline"
    files = StageFiles(SearchDone, ORIGINS, distils=False)


class LabelSmoothingControl(ControlStage):
    name, kind = "control_label_smoothing", LabelSmoothingSearch.kind
    arm = loop = "baseline"
    needs = (LabelSmoothingSearch.name, *CONFIRMATIONS)
    files = files_of(distils=False)

    def basis(self) -> Basis | None:
        search = self.context.stage(LabelSmoothingSearch.name)
        return {search.name: search.folder.done["parameters"]} if search.is_current() else None

    def parameters(self) -> dict[str, Any]:
        return self.basis()[LabelSmoothingSearch.name]


STAGES = (LabelSmoothingSearch, LabelSmoothingControl)
