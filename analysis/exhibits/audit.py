"""The audit of the usual protocol."""

from kdstudy.analysis.audit_words import COLUMNS, audit_cells
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.audit import audit_waterfall
from kdstudy.analysis.study_analysis import StudyAnalysis


def audit(name: str, analysis: StudyAnalysis) -> Exhibit:
    found = analysis.outcome.get("audit")
    return Exhibit(
        name, "How much of a gain is protocol?",
        "From the gain as it is usually reported to this study’s comparison, one step at a time, on seeds of the "
        "audit’s own. Dots: the gain that each protocol measures. Bars: what the step to the next one changes. "
        "Whiskers: 95 % intervals; with the best test epoch they are over the seeds, for these very images, otherwise "
        "seeds and test images are samples. The audit chooses nothing and is no look at the study’s answer, whose "
        "interval it leaves as it is. False reports: all pairs of different seeds of two baselines count, one of them "
        "in the place of the distilled student; the intervals respect that pairs share seeds.",
        "This needs the audit on all its seeds.", audit_waterfall(analysis.outcome),
        notes=tuple(("finding", text) for text in found["statements"]) if found else (), nav="Audit",
        table=(COLUMNS, *map(tuple, audit_cells(found))) if found else (),
        applies=analysis.study.config.get("audit") is not None)
