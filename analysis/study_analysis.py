"""Everything that is computed from one study, each part once and only when it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from kdstudy.analysis.outcome import results
from kdstudy.analysis.predictions import Calibration, calibration, per_class, teacher_agreement
from kdstudy.analysis.sensitivity.findings import analyse
from kdstudy.analysis.sensitivity.rungs import rung_correlations
from kdstudy.analysis.study_files import StudyFiles


@dataclass(frozen=True)
class StudyAnalysis:
    """The numbers behind the report. A property raises ValueError where a stage's files do not fit together."""

    study: StudyFiles

    @classmethod
    def of(cls, folder: Path) -> StudyAnalysis:
        return cls(StudyFiles(folder))

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """results.json: see `kdstudy.analysis.outcome`."""
        return results(self.study)

    @cached_property
    def sensitivity(self) -> dict[str, Any]:
        """sensitivity.json: see `kdstudy.analysis.sensitivity.findings`."""
        return analyse(self.study)

    @cached_property
    def rung_correlations(self) -> pd.DataFrame:
        """Whether early epochs predict the end: see `kdstudy.analysis.sensitivity.rungs`."""
        return rung_correlations(self.study)

    @cached_property
    def classes(self) -> pd.DataFrame:
        """classes.csv: see `kdstudy.analysis.predictions.per_class`."""
        return per_class(self.study)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """See `kdstudy.analysis.predictions.teacher_agreement`."""
        return teacher_agreement(self.study)

    @cached_property
    def calibration(self) -> Calibration | None:
        """See `kdstudy.analysis.predictions.calibration`."""
        return calibration(self.study)
