"""The settings of a study, validated by pydantic and read from a TOML study file."""

import math
from collections.abc import Iterator
from typing import Annotated, Any

import tomli_w
from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from kdstudy.config.consistency import check_audit, check_kinds, check_teachers
from kdstudy.config.sections import (
    CHOICE_ONLY,
    DEEPEST,
    DISTILLATION_ONLY,
    FEWEST_FINALISTS,
    FINALIST_SEEDS,
    FINALIST_SHARE,
    MOST_FINALISTS,
    SEARCHABLE,
    USUAL_SMOOTHING,
    AuditSettings,
    ConfirmSettings,
    ControlSettings,
    DefaultPoint,
    Finalists,
    FinalistSettings,
    PublishedSettings,
    Range,
    ResourceSettings,
    SearchSettings,
    TeacherSettings,
    WatchSettings,
)
from kdstudy.config.teachers import MAIN, OTHERS, TeacherChanges, TeacherName, section_of, with_changes
from kdstudy.config.wording import shown, wording
from kdstudy.trainables import losses
from kdstudy.trainables.credentials import names_a_host, problem_with
from kdstudy.trainables.functions import is_function
from kdstudy.trainables.settings import DataSettings, Line, ModelSettings, Settings, TrainSettings, ViewSettings


class StudyConfig(Settings):
    """All settings of a study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100,
                      description="name of the study's folder; by default the file's")
    about: Line = Field("", description="one sentence for reports and model cards")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="seed of everything random")
    smoke: bool = Field(False, description="a trial run, as --smoke makes it: no report draws a conclusion from it")
    data: DataSettings = DataSettings()
    views: ViewSettings = ViewSettings()
    teacher: TeacherSettings
    teachers: dict[TeacherName, TeacherChanges] | None = None
    student: ModelSettings
    train: TrainSettings = TrainSettings()
    default: DefaultPoint = DefaultPoint()
    search: SearchSettings = SearchSettings()
    finalists: FinalistSettings = FinalistSettings()
    confirm: ConfirmSettings = ConfirmSettings()
    controls: ControlSettings = ControlSettings()
    audit: AuditSettings | None = None
    resources: ResourceSettings = ResourceSettings()
    watch: WatchSettings = WatchSettings()
    published: PublishedSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_credentials(cls, values: Any) -> Any:
        """Reject credentials, since studies are shared."""
        for problem in credentials_in(values):
            raise ValueError(problem)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        check_teachers(self)
        for name, dimension in self.space("distill").items():
            _check_dimension(name, dimension, self.train)
            self._check_used(name)
            point = self.default_parameters("distill")
            if name in losses.PARAMETERS and name not in point:
                continue  # the default point's loss has no such parameter
            default = point[name]
            where = "default" if name in DefaultPoint.model_fields else "train"
            if default is None:
                raise ValueError(f"search.{name} needs {where}.{name}, a value within the range, for the "
                                 "default point")
            if not dimension.contains(default):
                raise ValueError(f"search.{name} must include {where}.{name} = {default}")
        if problem := self.search.too_few_trials():
            raise ValueError(problem)
        if self.search.early_stopping and self.search.grace_period and not self.rungs:
            raise ValueError(f"search.grace_period = {self.search.grace_period} leaves no rung before 70 % of "
                             f"{self.train.epochs} epochs; make it smaller, or set search.early_stopping = false")
        self._check_learning_rates()
        if (self.data.validation or 0) + (self.data.test or 0) >= 1:
            raise ValueError("data.validation + data.test must be smaller than 1")
        if self.data.unlabelled and self.data.student_images is None:
            raise ValueError("data.unlabelled needs data.student_images: it uses the images that these leave out")
        check_kinds(self)
        if "label_smoothing" in self.controls.kinds:
            self._check_smoothing()
        check_audit(self)
        return self

    def _check_smoothing(self) -> None:
        """Raises ValueError where the range of the control's label smoothing does not suit it."""
        dimension = self.controls.smoothing
        _check_dimension("label_smoothing", dimension, self.train, "controls")
        if not dimension.contains(USUAL_SMOOTHING):
            raise ValueError(f"controls.label_smoothing must include {USUAL_SMOOTHING}, the default point of its "
                             "search")

    def _check_used(self, name: str) -> None:
        """Raises ValueError where no trial can have a parameter that is searched."""
        if name in losses.PARAMETERS and not any(name in losses.parameters_of(loss) for loss in self.losses):
            having = [loss for loss in losses.LOSSES if name in losses.parameters_of(loss)]
            named = " or ".join(map(repr, self.losses))
            raise ValueError(f"search.{name} varies what no trial has: the loss is {named}, which has no {name}; "
                             f"remove search.{name}, or choose a loss that has it ({', '.join(having)})")

    def _check_learning_rates(self) -> None:
        """Raises ValueError where a cosine would end above its peak."""
        floors, peaks = self.extremes("min_lr", self.train.min_lr), self.extremes("lr", self.default.lr)
        if max(floors) > min(peaks):
            raise ValueError(f"train.min_lr or search.min_lr reaches {max(floors):g}, above the learning rate "
                             f"{min(peaks):g}, which default.lr or search.lr reaches")
        for section, teacher in self.used_teachers.items():
            if not teacher.is_given and teacher.min_lr > min(teacher.learning_rates):
                raise ValueError(f"{section}.min_lr = {teacher.min_lr:g} is above {section}.lr = "
                                 f"{min(teacher.learning_rates):g}")

    def extremes(self, name: str, default: Any) -> tuple[Any, ...]:
        """The extreme values, or all of the choices, that trials have for a parameter of both arms."""
        dimension = getattr(self.search, name)
        return (default,) if dimension is None else dimension.extremes

    @property
    def all_teachers(self) -> dict[str, TeacherSettings]:
        """The settings of each teacher, by name. Raises ValueError where those of a section do not fit together."""
        others = {name: with_changes(self.teacher, name, changes) for name, changes in (self.teachers or {}).items()}
        return {MAIN: self.teacher} | others

    @property
    def teacher_choice(self) -> tuple[str, ...]:
        """The names of the teachers that trials of the distillation may have."""
        return (self.search.teacher and self.search.teacher.choice) or (MAIN,)

    @property
    def used_teachers(self) -> dict[str, TeacherSettings]:
        """The settings of these teachers, by section, that of [teacher] first."""
        known = self.all_teachers
        return {section_of(name): known[name] for name in known if name in self.teacher_choice}

    def teacher_in(self, section: str) -> TeacherSettings:
        """The settings of the teacher in a section, `teacher` or `teachers.NAME`."""
        return self.teacher if section == section_of(MAIN) else self.used_teachers[section]

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that trials of the distillation may have."""
        return self.search.loss.choice if self.search.loss else (self.default.loss,)

    @property
    def reads_features(self) -> bool:
        """Whether any of them reads the teacher's features."""
        return any(losses.what_reads(loss) == losses.FEATURES for loss in self.losses)

    def space(self, arm: str) -> dict[str, Range]:
        """The search space of an arm, `baseline` or `distill`, by parameter; or of the control `label_smoothing`, which
        has one parameter more than the baseline."""
        names = [name for name in SEARCHABLE if arm == "distill" or name not in DISTILLATION_ONLY]
        space = {name: getattr(self.search, name) for name in names if getattr(self.search, name) is not None}
        return space | ({"label_smoothing": self.controls.smoothing} if arm == "label_smoothing" else {})

    def default_parameters(self, arm: str) -> dict[str, float | str]:
        """An arm's default point: learning rate, for distillation the teacher (if it is searched), the loss (unless it
        is the usual one in all trials), its parameters and alpha, and other searched parameters."""
        return losses.active(self.default_values(arm))

    def default_values(self, arm: str) -> dict[str, float | str]:
        """The values of the default point and, beside them, the defaults of the parameters that only other losses of an
        arm's trials have."""
        searched = [name for name in SEARCHABLE if getattr(self.search, name) is not None]
        extra = {name: getattr(self.train, name) for name in searched if name in TrainSettings.model_fields}
        own = {"alpha", *(name for loss in self.losses for name in losses.parameters_of(loss))}
        own |= {"loss"} if self.losses != (losses.USUAL,) else set()
        own |= {"teacher"} if self.search.teacher else set()
        extra |= {"label_smoothing": USUAL_SMOOTHING} if arm == "label_smoothing" else {}
        names = [name for name in DISTILLATION_ONLY if name in own] if arm == "distill" else []
        return {name: getattr(self.default, name) for name in (*names, "lr")} | extra

    def trials(self, arm: str) -> int:
        """The number of trials of an arm; with an empty search space only the default point runs."""
        if not self.space(arm):
            return 1
        return self.search.trials if arm == "distill" else self.search.baseline_trials

    def protected(self, arm: str) -> int:
        if not self.space(arm):
            return 0
        return self.search.protected if arm == "distill" else self.search.baseline_protected

    def finalists_of(self, arm: str) -> Finalists | None:
        """The finalists of an arm; None if there are none. See `kdstudy.stages.finalists` for who they are."""
        asked = self.finalists
        if asked.configurations == 0:
            return None
        if asked.configurations is not None:
            others = 2 if arm == "distill" and self.shared_parameters else 1
            return Finalists(asked.configurations, asked.configurations + others, asked.seeds or FINALIST_SEEDS)
        # Both arms or neither: chosen on fresh seeds, only one of them would be less lucky than the other.
        found = {one: self._affordable_finalists(one) for one in ("baseline", "distill") if self.trials(one) > 1}
        return found.get(arm) if all(found.values()) else None

    def _affordable_finalists(self, arm: str) -> Finalists | None:
        runs, asked = int(FINALIST_SHARE * self.expected_runs(arm)), self.finalists.seeds
        seeds = asked or max(1, min(FINALIST_SEEDS, runs // MOST_FINALISTS))
        retrained = max(min(runs // seeds, MOST_FINALISTS), FEWEST_FINALISTS if asked else 0)
        return Finalists(retrained, retrained, seeds) if retrained >= FEWEST_FINALISTS else None

    def expected_runs(self, arm: str) -> float:
        """The epochs that an arm's search is expected to take, in runs of the full length.

        A rung is taken to keep half as many trials again as its share: a search finds better points as it goes on. In
        the simulations of `tests/known_choices.py`, searches of 8 to 60 trials took 2 to 15 % more than this.
        """
        trials = self.trials(arm)
        protected = min(trials, self.protected(arm) + 1)
        share, kept, before = 0.0, 1.0, 0
        for epoch in [*self.rungs, self.train.epochs]:
            share += kept * (epoch - before) / self.train.epochs
            kept, before = kept * min(1, 1.5 / self.search.reduction_factor), epoch
        return protected + (trials - protected) * share

    @property
    def shared_parameters(self) -> list[str]:
        """The searched parameters that both arms share, for the configuration that tunes only these."""
        return list(self.space("baseline")) if len(self.space("distill")) > len(self.space("baseline")) else []

    @property
    def shared_named(self) -> str:
        """These in words, for the name of that configuration."""
        first, *others = self.shared_parameters
        if len(others) > 2:
            return f"{first} and {len(others)} more"
        return " and ".join([", ".join([first, *others][:-1]), others[-1]]) if others else first

    @property
    def view_count(self) -> int:
        """The number of different views of each image."""
        return self.views.count or self.train.epochs

    @property
    def report_every(self) -> int:
        return min(self.train.epochs, self.search.report_every or max(1, self.train.epochs // 30))

    @property
    def checkpoint_every(self) -> int:
        """In epochs; a multiple of report_every."""
        wanted = self.search.checkpoint_every or 5 * self.report_every
        return math.ceil(wanted / self.report_every) * self.report_every

    @property
    def rungs(self) -> list[int]:
        """The epochs at which trials may be stopped, all multiples of report_every.

        The first comes after the warm-up and, where only the head learns at first, after that, once rankings are
        informative. None comes after 70 % of the epochs, where stopping saves little.
        """
        search, epochs = self.search, self.train.epochs
        if not search.early_stopping:
            return []
        grace = search.grace_period or max(2, math.ceil(epochs / 9), math.ceil(self._slow_start) + 1)
        rung = math.ceil(grace / self.report_every) * self.report_every
        rungs = []
        while rung <= 0.7 * epochs:
            rungs.append(rung)
            rung *= search.reduction_factor
        return rungs

    @property
    def _slow_start(self) -> float:
        """How many epochs the longest warm-up takes, or the longest time in which only the head learns."""
        train, search = self.train, self.search
        if train.warmup_epochs is None and search.warmup_epochs is None:
            warmup = max(self.extremes("warmup", train.warmup)) * train.epochs
        else:
            warmup = max(self.extremes("warmup_epochs", train.warmup_epochs))
        return max([warmup, *(epochs for epochs in self.extremes("freeze", train.freeze) if epochs != "all")])

    def to_values(self) -> dict[str, Any]:
        """Return the settings as they would appear in a study file."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_values())


def credentials_in(values: Any) -> Iterator[str]:
    """Yield a message for each setting that contains credentials, without showing them."""
    for name, text in named_texts(values):
        if problem := problem_with(text, is_location=name.split(".")[0] not in ("about", "published")):
            yield f"{name} {problem}"


def named_texts(values: Any, name: str = "", levels: int = DEEPEST) -> Iterator[tuple[str, str]]:
    """All texts among settings, with their full names; what is nested deeper is refused elsewhere."""
    if isinstance(values, str):
        yield name, values
    elif isinstance(values, dict) and levels:
        for key, value in values.items():
            yield from named_texts(value, f"{name}.{key}" if name else str(key), levels - 1)
    elif isinstance(values, list | tuple) and levels:
        for value in values:
            yield from named_texts(value, name, levels - 1)


def _check_dimension(name: str, dimension: Range, train: TrainSettings, section: str = "search") -> None:
    """Check that the setting accepts all values of its search range, beside the other settings. Raises ValueError."""
    if name in CHOICE_ONLY and dimension.choice is None:
        raise ValueError(f"{section}.{name} takes choice = [...] only")
    settings, others = (DefaultPoint, {}) if name in DefaultPoint.model_fields else (TrainSettings, train.model_dump())
    for value in dimension.extremes:
        try:
            settings.model_validate(others | {name: value})
        except ValidationError as error:
            raise ValueError(f"{section}.{name} reaches {shown(value)}: {wording(error.errors())}") from None


def settings_table() -> dict[str, list[tuple[str, str, str]]]:
    """Return per section every setting, its default as TOML ("" if there is none), and its description."""
    fields = StudyConfig.model_fields
    sections = {"": [(name, _default(fields[name]), fields[name].description) for name in ("name", "about", "seed")]}
    for section, field in fields.items():
        model = section_model(field)
        if section == OTHERS:
            sections[f"{OTHERS}.NAME"] = [("KEY", "", "another teacher to choose from: any setting of [teacher] that "
                                           "differs; see search.teacher")]
        elif model is not None:
            sections[section] = [(name, _default(own), own.description or "")
                                 for name, own in model.model_fields.items()]
    return sections


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        return f"= [{', '.join(f'{part:.4g}' if isinstance(part, float) else repr(part) for part in value)}]"
    return "" if value is None or field.is_required() else f"= {tomli_w.dumps({'v': value})[4:].strip() or '{}'}"


def own_functions(config: StudyConfig) -> dict[str, str]:
    """Return the user's own functions (package.module:function) that the settings name, by setting."""
    named = {f"{section}.{key}": getattr(teacher, key) for section, teacher in config.used_teachers.items()
             for key in ("model", "function")} | {"student.model": config.student.model}
    return {setting: name for setting, name in named.items() if name and is_function(name)} | own_losses(config)


def own_losses(config: StudyConfig) -> dict[str, str]:
    """Return those of them that are losses, each once."""
    return {setting: name for setting, name in named_losses(config).items() if is_function(name)}


def named_losses(config: StudyConfig) -> dict[str, str]:
    """Return the losses that trials of the distillation may have, each once, by setting."""
    choices = config.search.loss.choice if config.search.loss else ()
    return {"default.loss": config.default.loss,
            **{f"search.loss[{place}]": loss for place, loss in enumerate(choices) if loss != config.default.loss}}


def locations_named(config: StudyConfig, watch: bool) -> dict[str, str]:
    """Return the settings that name a host to download from, which may see this machine's credentials, or, with
    `watch`, a destination for curves."""
    asked = {"data.source": [config.data.source], "search.warm_start": [config.search.warm_start]}
    for section, teacher in config.used_teachers.items():
        asked |= {f"{section}.logits": [teacher.logits], f"{section}.trained": teacher.trained or (),
                  f"{section}.pretrained": [teacher.pretrained]}
    asked["student.pretrained"] = [config.student.pretrained]
    found = {setting: location for setting, locations in asked.items() for location in locations
             if isinstance(location, str) and names_a_host(location)}
    told = {"watch.mlflow": config.watch.mlflow, "watch.wandb": config.watch.wandb} if watch else {}
    return found | {setting: location for setting, location in told.items() if location}


def section_model(field: FieldInfo) -> type[Settings] | None:
    """Return the section model that a field holds, or None."""
    inside = getattr(field.annotation, "__args__", ())
    kinds = (field.annotation, *inside, *(kind for part in inside for kind in getattr(part, "__args__", ())))
    return next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
