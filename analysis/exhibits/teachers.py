"""Several teachers: how much the gain depends on which one."""

from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.teachers import teacher_intervals
from kdstudy.analysis.study_analysis import StudyAnalysis
from kdstudy.analysis.teachers import teachers_wanted


def teachers(name: str, analysis: StudyAnalysis) -> Exhibit:
    return Exhibit(
        name, "Does the gain depend on the teacher’s seed?",
        "Test accuracy of each teacher’s students minus that of the tuned baseline, seed by seed; the teacher’s own "
        "test accuracy stands beside its name, the best on top. An open circle’s interval holds for that teacher. The "
        "interval over all treats teachers, seeds and test images as samples, so it holds for teachers trained like "
        "these; with few teachers it is wide, because few say little of how teachers differ.",
        "This needs the students of all teachers, on at least two seeds.", teacher_intervals(analysis.outcome),
        nav="Teachers", applies=teachers_wanted(analysis.study) > 1)
