"""The outputs that are written after the stages: what the models cost to run, the report and the exported student."""

from pathlib import Path

from kdstudy.config.settings import StudyConfig
from kdstudy.stages.base import Output
from kdstudy.store import files


class Deployment(Output):
    """What teacher, tuned baseline and distilled student cost to run, measured when no trial runs any more, so that the
    machine is quiet. A trial run, over in seconds, has none. Its path is that of `analysis.deployment.FILE`."""

    name = "deployment"
    path = "results/deployment.json"
    published = "results"
    dispensable = True

    def is_wanted(self, config: StudyConfig) -> bool:
        return not config.smoke

    def write(self, config: StudyConfig, folder: Path) -> bool:
        from kdstudy.analysis.deployment import deployment  # pandas takes long to import
        from kdstudy.analysis.study_files import StudyFiles

        study = StudyFiles(folder)
        if study.confirmation is None or deployment(study) is not None:
            return False
        from kdstudy.export.deployment import figures  # imports torch

        files.write_json(folder / self.path, figures(config, folder))
        return True


class Report(Output):
    """The results table and the report, rebuilt only if something has changed."""

    name = "report"
    path = "results/report.html"
    published = "results"

    def write(self, config: StudyConfig, folder: Path) -> bool:
        from kdstudy.analysis import report  # plotly and scikit-learn take a second to import

        return report.build(folder)


class Export(Output):
    """The best distilled student, as a model folder for timm."""

    name = "export"
    path = "export"
    published = "export"

    def missing(self, folder: Path) -> str | None:
        from kdstudy.analysis.study_files import StudyFiles  # pandas takes long to import

        study = StudyFiles(folder)
        if study.confirmation is None or study.exported_index() is not None:
            return None
        earlier = f"; {self.path}/ still holds an earlier winner" if (folder / self.path).exists() else ""
        return f"nothing to export: the chosen configuration diverged on every confirmation seed{earlier}"

    def write(self, config: StudyConfig, folder: Path) -> bool:
        from kdstudy.analysis.study_files import StudyFiles  # pandas takes long to import

        if StudyFiles(folder).has_current_export:
            return False
        from kdstudy.export import candidates, writing  # imports torch

        writing.export(config, candidates.student(config, folder), folder / self.path, folder=folder)
        return True
