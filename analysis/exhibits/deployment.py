"""What the teacher, the tuned baseline and the distilled student cost to run, and how good they are."""

from kdstudy.analysis.deployment import deployment as read
from kdstudy.analysis.deployment import explanation, table
from kdstudy.analysis.exhibits.exhibit import Exhibit
from kdstudy.analysis.figures.deployment import accuracy_by_latency
from kdstudy.analysis.study_analysis import StudyAnalysis


def deployment(name: str, analysis: StudyAnalysis) -> Exhibit:
    content = read(analysis.study)
    beside = " In the figure, baseline and student stand on both sides of their common latency."
    return Exhibit(
        name, "What does it cost to run?", explanation(content) + beside if content else "",
        "This needs the costs, which `kdstudy run` measures once the study is done.",
        accuracy_by_latency(content) if content else None, nav="Deployment",
        table=tuple(map(tuple, table(content))) if content else (), applies=content is not None)
