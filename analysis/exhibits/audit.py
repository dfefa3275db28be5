"""The audit of the usual protocol."""

from kdstudy.analysis.audit_words import COLUMNS, audit_cells
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.audit import audit_waterfall
from kdstudy.analysis.study_analysis import StudyAnalysis


def audit(name: str, analysis: StudyAnalysis) -> Exhibit:
    found = analysis.outcome.get("audit")
    statement = found and found["statement"]
    return Exhibit(
        name, "How much of a gain is protocol?",
        "From the gain as it is usually reported to this study’s comparison, one step at a time. Dots: the gain that "
        "each protocol measures, on seeds of the audit’s own; bars: what the step from one to the next changes; "
        "whiskers: 95 % intervals. Where the best test epoch is taken, intervals are over the seeds, for these very "
        "images; with the last epoch, seeds and test images are samples. The audit’s runs read the test images after "
        "every epoch, which no other run does. They choose nothing and are no look at the study’s answer, whose "
        "interval they leave as it is. False reports count all pairs of different seeds of two baselines, of which one "
        "stands for a distilled student; their intervals respect that pairs share seeds.",
        "This needs the audit on all its seeds.", audit_waterfall(analysis.outcome),
        notes=(("finding", statement),) if statement else (), nav="Audit",
        table=(COLUMNS, *map(tuple, audit_cells(found))) if found else (),
        applies=analysis.study.config.get("audit") is not None)
