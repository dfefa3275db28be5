"""The gain, first on the page."""

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.gain import gain_intervals
from kdstudy.analysis.study_analysis import StudyAnalysis


def gain(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(
        name, "Gain over the tuned baseline",
        "Test accuracy minus that of the tuned baseline, seed by seed. An interval that includes zero leaves open "
        "whether there is a gain; an interval above zero shows a gain of a size within it. The bold row was chosen "
        "beforehand as the study’s answer; the intervals of the others are wider, so that they hold together.",
        "This needs the confirmation on at least two seeds.", gain_intervals(analysis.outcome))
