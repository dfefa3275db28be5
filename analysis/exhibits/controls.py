"""The controls: what else could explain the gain."""

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.controls import control_intervals
from kdstudy.analysis.study_analysis import StudyAnalysis


def controls(name: str, analysis: StudyAnalysis) -> Exhibit:
    wanted = bool(analysis.study.config.get("controls", {}).get("kinds"))
    return Exhibit(
        name, "Does the gain come from what the teacher knows?",
        "Test accuracy of the distilled student minus that of each control, seed by seed. Above zero: the control does "
        "not explain the whole gain. An interval that includes zero leaves open whether the control does as well. The "
        "intervals follow Holm’s procedure over the controls: each leaves out zero exactly where a difference is "
        "shown, and all together show one where there is none in at most 5 % of studies.",
        "This needs a control that is done, on at least two seeds.", control_intervals(analysis.outcome),
        nav="Controls", applies=wanted)
