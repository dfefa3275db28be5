"""The looks at the test images that a study's two confirmation stages make together.

A look is made whenever both are done: the report then compares them. `confirm.seeds` may plan several, at more and more
seeds; the study goes on to the next one unless the present one decides. The done-mark of the distillation's
confirmation keeps the plan and every look, for each makes the intervals of later ones wider: see
`kdstudy.analysis.looks`. Studies with a single look need none of this, and their done-marks say nothing of it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kdstudy.errors import MissingTeacherError, StudyFailedError
from kdstudy.stages.context import Context
from kdstudy.store import files
from kdstudy.store.schema import Parameters, Part, Whole

STAGES = ("confirm_baseline", "confirm")  # the names of the two confirmation stages
Pair = dict[str, Any]  # the parameters of the configurations that a look compares, `baseline` and `distilled`


class PastLook(Part):
    """A comparison that was made on the test images.

    goes_on: whether it left open what the study asks, so that the next planned look follows.
    """

    seeds: Annotated[Whole, Field(ge=1)]
    baseline: Parameters
    distilled: Parameters
    goes_on: bool = False


class Looks:
    """The looks of one study: those on record, and how many seeds the next one has."""

    def __init__(self, context: Context):
        self._context, self._settings = context, context.config.confirm

    @property
    def _stages(self) -> tuple[Any, Any]:
        """The confirmation stages of the baseline and of the distillation."""
        baseline, distilled = (self._context.stage(name) for name in STAGES)
        return baseline, distilled

    @property
    def seeds(self) -> int:
        """How many fresh seeds each row has at the present look: the next planned number after those that left the
        question open.

        With a plan, a study never goes back to fewer seeds than it has, not even with another winner.
        """
        planned = self._settings.looks
        if len(planned) == 1 or (done := self._done(STAGES[1])) is None:
            return planned[0]
        pair, reached = self._chosen(), len(done["seeds"])
        passed = max((look["seeds"] for look in done.get("looks") or [] if look.get("goes_on") and _pair(look) == pair),
                     default=0)
        return next((size for size in planned if size >= reached and size > passed), planned[-1])

    def settle(self) -> tuple[str, ...]:
        """Once both stages are done, record the look, and decide whether the next planned one follows.

        Returns the names of the stages that then go on: both or none. Raises StudyFailedError.
        """
        done, planned = self._done(STAGES[1]), self._settings.looks
        if done is None or (len(planned) == 1 and not done.get("looks")):
            return ()
        if not all(stage.is_finished for stage in self._stages):
            return ()
        goes_on = self.seeds < planned[-1] and not self._is_decided()
        looks, now = done.get("looks") or [], self._present()
        if now not in map(_bare, looks):
            looks = [*looks, now]
        looks = [look | {"goes_on": goes_on} if _bare(look) == now else look for look in looks]
        if looks != done.get("looks"):
            self._write(looks)
        return STAGES if goes_on else ()

    def history(self) -> dict[str, Any]:
        """What the next done-mark of the distillation's confirmation keeps: the plan of the first, and the looks."""
        done = self._done(STAGES[1])
        if done is None:
            return {"plan": list(self._settings.looks)} if len(self._settings.looks) > 1 else {}
        return {name: done[name] for name in ("plan", "looks") if name in done}

    def keep_first(self) -> None:
        """Record the look that both stages' done-marks are, before either is written anew: the first on record."""
        done = self._done(STAGES[1])
        if done is not None and not done.get("looks") and (now := self._present()):
            self._write([now])

    def _is_decided(self) -> bool:
        """Whether the present look's interval leaves out zero, or lies below the gain that is worth having."""
        from kdstudy.analysis.gain import SIGNIFICANT  # SciPy takes a second to import
        from kdstudy.analysis.looks import primary_gain
        from kdstudy.analysis.study_files import StudyFiles

        study = StudyFiles(self._context.folder)
        if study.confirmation is None:
            return True  # the two are no pair yet; the next run compares them
        try:
            gain = primary_gain(study)
        except ValueError as error:
            raise StudyFailedError(str(error)) from None
        worth_having = self._settings.gain
        return gain["p"] < SIGNIFICANT or (worth_having is not None and gain["high"] < worth_having)

    def _chosen(self) -> Pair | None:
        """The pair that the searches' present winners make; None while one is missing."""
        try:
            baseline, distilled = (stage.chosen_parameters() for stage in self._stages)
        except MissingTeacherError:
            return None
        if not baseline or not distilled:
            return None
        return {"baseline": baseline["tuned"], "distilled": distilled[self._settings.primary]}

    def _present(self) -> dict[str, Any] | None:
        """What the done-marks on disk compare; None where they are not a pair."""
        marks = [self._done(name) for name in STAGES]
        if None in marks or len({len(done["seeds"]) for done in marks}) != 1:
            return None
        baseline, distilled = ({row["configuration"]: row["parameters"] for row in done["rows"]} for done in marks)
        return {"seeds": len(marks[0]["seeds"]), "baseline": baseline["tuned"],
                "distilled": distilled[self._settings.primary]}

    def _done(self, name: str) -> dict[str, Any] | None:
        """A stage's done-mark, even if files of its runs have been lost: it still tells what was looked at."""
        folder = self._context.stage(name).known_folder
        done = files.read_json(folder.path / "done.json") if folder else None
        return done if folder and folder.expected.is_done(done) else None

    def _write(self, looks: list[dict[str, Any]]) -> None:
        """Change the done-mark in this alone: what it says of its files holds as it did."""
        folder = self._stages[1].folder
        files.write_json(folder.path / "done.json", self._done(STAGES[1]) | {"looks": looks})
        folder.storage.publish(folder.path)


def _pair(look: dict[str, Any]) -> Pair:
    return {arm: look[arm] for arm in ("baseline", "distilled")}


def _bare(look: dict[str, Any]) -> dict[str, Any]:
    """A look without what was decided then."""
    return {name: look[name] for name in ("seeds", "baseline", "distilled")}
