"""The study file: one typed, validated model read from TOML."""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from study.errors import UserError
from trainables.credentials import names_a_host, problem_with, redact
from trainables.functions import is_function
from trainables.messages import one_line
from trainables.settings import (
    DataSettings,
    FromList,
    LearningRate,
    Line,
    ModelSettings,
    PositiveFloat,
    PositiveInt,
    Settings,
    TrainSettings,
    ViewSettings,
)

PRESETS = Path(__file__).parent / "presets"
STUDY_FILE = "study.toml"
FINALISTS, OUTPUTS = ("finalists_baseline", "finalists"), ("report", "export")
STAGE_NAMES = ("teacher", "baseline", "teacher_logits", "distill", *FINALISTS, "confirm_baseline", "confirm", *OUTPUTS)
Natural = Annotated[int, Field(ge=0, le=1_000_000)]
Trials = Annotated[int, Field(ge=1, le=10_000)]
Seeds = Annotated[int, Field(ge=1, le=1000)]
LearningRates = Annotated[tuple[LearningRate, ...], Field(min_length=1, max_length=100)]
# One value where a list is meant.
FromOne = BeforeValidator(lambda value: (value,) if isinstance(value, str) else
                          tuple(value) if isinstance(value, list) else value)
LONGEST_SHOWN = 80  # characters of a value in a message
LARGEST_FILE = 2**20  # bytes of a study file
MOST_DECADES = 15  # of a range on a logarithmic scale
SMOKE_PIXELS = 1.2e6  # per split: what keeps a first look at 224 pixels within minutes on a CPU
SMOKE_IMAGES = 12  # at least: few classes, each with a few images


class Range(Settings):
    """One dimension of the search space: exactly one of log, linear and choice."""

    log: Annotated[tuple[PositiveFloat, PositiveFloat] | None, FromList] = None
    linear: Annotated[tuple[float, float] | None, FromList] = None
    choice: Annotated[tuple[int | float | str, ...] | None, FromList] = Field(None, max_length=1000)

    @model_validator(mode="after")
    def _one_kind(self) -> "Range":
        kinds = [kind for kind in (self.log, self.linear, self.choice) if kind is not None]
        if len(kinds) != 1:
            raise ValueError("takes exactly one of log = [low, high], linear = [low, high], choice = [...]")
        if self.choice is None and not kinds[0][0] < kinds[0][1]:
            raise ValueError(f"needs low < high, not {list(kinds[0])}")
        if self.choice is not None and len(self.choice) < 2:
            raise ValueError("choice needs at least two values")
        if self.choice is not None and len(set(self.choice)) < len(self.choice):
            raise ValueError("choice names a value twice")
        if self.log is not None and math.log10(self.log[1]) - math.log10(self.log[0]) > MOST_DECADES:
            raise ValueError(f"log spans more than {MOST_DECADES} powers of ten")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.log or self.linear

    @property
    def extremes(self) -> tuple[float | int | str, ...]:
        """The values that must be valid for all others to be."""
        return self.choice or self.bounds

    def contains(self, value: float | str) -> bool:
        if self.choice is not None:
            return value in self.choice
        low, high = self.bounds
        return low <= value <= high


class TeacherSettings(ModelSettings, TrainSettings):
    """The teacher: a model and how it is trained, or one or several that are trained already, or its logits."""

    model: Line = Field("", description="what is trained: as for the student; or give trained or logits instead")
    trained: Annotated[tuple[Line, ...] | None, FromOne] = Field(
        None, description="folders of trained models; the logits of several are averaged", min_length=1,
        max_length=100
    )
    function: Line | None = Field(None, description="package.module:function that a trained folder may name and call")
    logits: Line | None = Field(None, description="a file that `kdstudy logits` wrote")
    lr: Annotated[LearningRate | LearningRates, FromList] = Field(
        3e-4, description="a list: the best on validation is kept"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "TeacherSettings":
        given = [name for name in ("model", "trained", "logits") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("needs exactly one of model (to be trained), trained = [folders] and logits = file, not "
                             f"{' and '.join(given) or 'none'}"
                             + ("; --set teacher.model= takes a study's own model away" if len(given) > 1 else ""))
        return self

    @property
    def is_given(self) -> bool:
        """Whether there is nothing to train."""
        return not self.model

    @property
    def title(self) -> str:
        """What to call it: the model, or what is given."""
        return self.model or self.logits or " + ".join(Path(folder).name for folder in self.trained)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.lr)) if isinstance(self.lr, tuple) else (self.lr,)

    @property
    def model_settings(self) -> ModelSettings:
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})

    @property
    def train_settings(self) -> TrainSettings:
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.model_fields})


class DefaultPoint(Settings):
    """The point that is run as it is, whatever the search finds."""

    temperature: Annotated[float, Field(ge=0.01, le=10_000)] = Field(
        4.0, description="T, which softens both in the soft loss"
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="weight of the soft loss")
    lr: LearningRate = Field(3e-4, description="peak learning rate, of both arms")


class SearchSettings(Settings):
    """What is searched and how. Ranges hold for both arms, apart from temperature and alpha."""

    trials: Trials = Field(20, description="of the distillation")
    baseline_trials: Trials = Field(20, description="of the baseline; search.trials does not change it")
    protected: Natural = Field(8, description="Sobol points that are never stopped, besides the default point")
    baseline_protected: Natural = Field(4, description="likewise for the baseline")
    early_stopping: bool = Field(True, description="ASHA: stop trials that are behind at a rung")
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = Field(
        3, description="a rung keeps the best one in so many"
    )
    grace_period: PositiveInt | None = Field(
        None, description="epochs before the first rung, which is after the warm-up unless given"
    )
    report_every: PositiveInt | None = Field(None, description="epochs; a thirtieth of them unless given")
    checkpoint_every: PositiveInt | None = Field(None, description="epochs; every fifth report unless given")
    warm_start: Line | None = Field(
        None, description="another study's folder: TPE starts from what its searches found in the same space"
    )
    temperature: Range | None = Field(None, description="{log = [1, 16]}, {linear = [1, 8]} or {choice = [2, 4]}")
    alpha: Range | None = Field(None, description="a range, likewise; the default point must lie in it")
    lr: Range | None = Field(None, description="a range for both arms")
    weight_decay: Range | None = Field(None, description="a range for both arms")
    warmup: Range | None = Field(None, description="a range for both arms")
    batch_size: Range | None = Field(None, description="{choice = [64, 128]}")
    optimizer: Range | None = Field(None, description="{choice = ['adamw', 'lamb']}")


DISTILLATION_ONLY = ("temperature", "alpha")
SEARCHABLE = (*DISTILLATION_ONLY, "lr", "weight_decay", "warmup", "batch_size", "optimizer")


class FinalistSettings(Settings):
    """A round between search and confirmation: the best configurations again on fresh seeds, by validation alone."""

    configurations: Natural = Field(0, description="the best so many of each arm, and the default; 0: no such round")
    seeds: Seeds = Field(3, description="fresh seeds for each of them; the best mean wins")


class ConfirmSettings(Settings):
    seeds: Seeds = Field(5, description="fresh paired seeds for every row of the table")


class ResourceSettings(Settings):
    cpus_per_trial: PositiveInt = Field(1, description="cores of each trial")
    gpus_per_trial: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        None, description="may be a fraction; 1 if there are"
    )
    concurrent: PositiveInt | None = Field(None, description="trials at a time; as many as fit unless given")
    teacher_workers: Annotated[int, Field(ge=1, le=10_000)] = Field(
        1, description="that train the teacher together, each with a trial's resources: DDP"
    )
    worker_retries: Natural = Field(3, description="how often a trial survives the death of its worker")


class WatchSettings(Settings):
    """Where a study's curves can be watched, besides `kdstudy status`. What it finds does not depend on it."""

    tensorboard: bool = Field(False, description="event files in the study's folder: tensorboard/STAGE/trial-NNN")
    mlflow: Line = Field("", description="MLflow's tracking URI, or a folder; needs kdstudy[mlflow]")
    wandb: Line = Field("", description="a project of Weights & Biases; needs kdstudy[wandb]")


class PublishedSettings(Settings):
    """What others have published for this pair, in percent; shown beside the study's own, never used."""

    pair: Line = Field(description="teacher → student")
    gain: float = Field(description="points")
    baseline: float | None = Field(None, description="percent")
    distilled: float | None = Field(None, description="percent")


class StudyConfig(Settings):
    """A whole study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100,
                      description="of the study's folder; that of the file unless given")
    about: Line = Field("", description="one sentence for reports and model cards")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="everything random follows from it")
    data: DataSettings = DataSettings()
    views: ViewSettings = ViewSettings()
    teacher: TeacherSettings
    student: ModelSettings
    train: TrainSettings = TrainSettings()
    default: DefaultPoint = DefaultPoint()
    search: SearchSettings = SearchSettings()
    finalists: FinalistSettings = FinalistSettings()
    confirm: ConfirmSettings = ConfirmSettings()
    resources: ResourceSettings = ResourceSettings()
    watch: WatchSettings = WatchSettings()
    published: PublishedSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_credentials(cls, values: Any) -> Any:
        """A study is there to be shown and sent: what it holds is no secret."""
        for problem in _credentials_in(values):
            raise ValueError(problem)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        for name, dimension in self.space("distill").items():
            _check_dimension(name, dimension)
            default = self.default_parameters("distill")[name]
            if not dimension.contains(default):
                where = "default" if name in DefaultPoint.model_fields else "train"
                raise ValueError(f"search.{name} must include {where}.{name} = {default}")
        for trials, protected in (("trials", "protected"), ("baseline_trials", "baseline_protected")):
            needed = getattr(self.search, protected) + 1
            if getattr(self.search, trials) < needed:
                raise ValueError(f"search.{trials} = {getattr(self.search, trials)} is too few: search.{protected} = "
                                 f"{needed - 1} and the default point need at least {needed}")
        if self.search.early_stopping and self.search.grace_period and not self.rungs:
            raise ValueError(f"search.grace_period = {self.search.grace_period} leaves no rung before 70 % of "
                             f"{self.train.epochs} epochs; make it smaller, or set search.early_stopping = false")
        if (self.data.validation or 0) + (self.data.test or 0) >= 1:
            raise ValueError("data.validation + data.test must be smaller than 1")
        if self.data.unlabelled and self.data.student_images is None:
            raise ValueError("data.unlabelled needs data.student_images: the others are what is used without labels")
        return self

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it has: finalists only where they are asked for."""
        return tuple(name for name in STAGE_NAMES if self.finalists.configurations or name not in FINALISTS)

    def space(self, arm: str) -> dict[str, Range]:
        """What is searched in an arm, `baseline` or `distill`."""
        names = [name for name in SEARCHABLE if arm == "distill" or name not in DISTILLATION_ONLY]
        return {name: getattr(self.search, name) for name in names if getattr(self.search, name) is not None}

    def default_parameters(self, arm: str) -> dict[str, float | str]:
        """The default point of an arm: its learning rate, temperature and alpha, and whatever else is searched."""
        searched = [name for name in SEARCHABLE if getattr(self.search, name) is not None]
        extra = {name: getattr(self.train, name) for name in searched if name in TrainSettings.model_fields}
        point = self.default.model_dump()
        if arm == "baseline":
            point = {name: value for name, value in point.items() if name not in DISTILLATION_ONLY}
        return point | extra

    def trials(self, arm: str) -> int:
        """How many trials an arm gets; where nothing is searched, the default point is the only one."""
        if not self.space(arm):
            return 1
        return self.search.trials if arm == "distill" else self.search.baseline_trials

    def protected(self, arm: str) -> int:
        if not self.space(arm):
            return 0
        return self.search.protected if arm == "distill" else self.search.baseline_protected

    @property
    def shared_parameters(self) -> list[str]:
        """What a distillation searches besides its own parameters: tuned alone, it shows what these are worth."""
        return list(self.space("baseline")) if len(self.space("distill")) > len(self.space("baseline")) else []

    @property
    def view_count(self) -> int:
        """How many different views of each image there are."""
        return self.views.count or self.train.epochs

    @property
    def report_every(self) -> int:
        return min(self.train.epochs, self.search.report_every or max(1, self.train.epochs // 30))

    @property
    def checkpoint_every(self) -> int:
        """Epochs; a multiple of report_every."""
        wanted = self.search.checkpoint_every or 5 * self.report_every
        return math.ceil(wanted / self.report_every) * self.report_every

    @property
    def rungs(self) -> list[int]:
        """The epochs at which trials may be stopped, all of them epochs that are reported.

        The first lies after the warm-up, where rankings begin to mean something; none lies beyond 70 % of the epochs,
        where stopping saves little.
        """
        search, epochs = self.search, self.train.epochs
        if not search.early_stopping:
            return []
        most_warmup = max([self.train.warmup, *(search.warmup.extremes if search.warmup else ())])
        grace = search.grace_period or max(2, math.ceil(epochs / 9), math.ceil(most_warmup * epochs) + 1)
        rung = math.ceil(grace / self.report_every) * self.report_every
        rungs = []
        while rung <= 0.7 * epochs:
            rungs.append(rung)
            rung *= search.reduction_factor
        return rungs

    def smoke(self) -> "StudyConfig":
        """The same study, every stage of it, small enough for a look: random weights, few images, few trials."""
        size = max(self.data.image_size or 0, self.teacher.image_size or 0, self.student.image_size or 0, 32)
        limit, large = max(SMOKE_IMAGES, round(SMOKE_PIXELS / size**2)), size > 64
        trials = 3 if large else 6
        changes = {
            "name": f"{self.name}-smoke",
            "data": {"limit": min(limit, self.data.limit or limit), "classes": self._smoke_classes(limit // 6),
                     "train_images": _share(self.data.train_images),
                     "student_images": _share(self.data.student_images)},
            "teacher": {"epochs": max(2, self.teacher.epochs // (8 if large else 4)),
                        "lr": self.teacher.learning_rates[:1], "pretrained": False},
            "student": {"pretrained": False},
            "train": {"epochs": max(2, self.train.epochs // 10)},
            "search": {"trials": trials, "baseline_trials": trials, "protected": trials // 2,
                       "baseline_protected": trials // 2,
                       "grace_period": None, "report_every": None, "checkpoint_every": None},
            "finalists": {"configurations": min(2, self.finalists.configurations), "seeds": 1},
            "confirm": {"seeds": 2},
            "views": {"count": None},
        }
        if large:  # what fits a GPU's memory does not fit a laptop's
            changes["teacher"]["batch_size"] = min(8, self.teacher.batch_size)
            changes["train"]["batch_size"] = min(8, self.train.batch_size)
            changes["search"]["batch_size"] = None
        return validate(_merge(self.model_dump(), changes))

    def _smoke_classes(self, most: int) -> int | tuple[str, ...] | None:
        """A few classes, so that a few images hold them all."""
        classes = self.data.classes
        if isinstance(classes, tuple):
            return classes[:most]
        return min(classes or most, most) if most < 20 or classes else None

    def to_values(self) -> dict[str, Any]:
        """What a study file would hold."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_values())


def _credentials_in(values: Any) -> Iterator[str]:
    """What is wrong with settings that hold credentials, without them."""
    for name, text in _texts(values):
        if problem := problem_with(text, is_place=name.split(".")[0] not in ("about", "published")):
            yield f"{name} {problem}"


def _texts(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All texts among settings, with their full names."""
    if isinstance(values, str):
        yield name, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, name)


def _share(amount: float | int | None) -> float | None:
    """Where the data shrink, a share of them still means something, a number does not: then it is half."""
    return 0.5 if isinstance(amount, int) else amount


def _check_dimension(name: str, dimension: Range) -> None:
    """What is proposed must be what the setting takes. Raises ValueError."""
    if name in ("batch_size", "optimizer") and dimension.choice is None:
        raise ValueError(f"search.{name} takes choice = [...] only")
    settings = DefaultPoint if name in DefaultPoint.model_fields else TrainSettings
    for value in dimension.extremes:
        try:
            settings.model_validate({name: value})
        except ValidationError as error:
            raise ValueError(f"search.{name} reaches {_shown(value)}: {wording(error.errors())}") from None


def check_parameter(name: str, value: float) -> None:
    """See whether a parameter of the loops may have this value. Raises UserError that names its option."""
    try:
        DefaultPoint.model_validate({name: value})
    except ValidationError as error:
        raise UserError(f"--{name} = {value:g}: {wording(error.errors())}") from None


def settings_table() -> dict[str, list[tuple[str, str, str]]]:
    """Per section: every setting, its default as TOML ("" where there is none), and what it is for."""
    fields = StudyConfig.model_fields
    sections = {"": [(name, _default(fields[name]), fields[name].description) for name in ("name", "about", "seed")]}
    for section, field in fields.items():
        model = _section_model(field)
        if model is not None:
            sections[section] = [(name, _default(own), own.description or "")
                                 for name, own in model.model_fields.items()]
    return sections


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value is None or field.is_required() else f"= {tomli_w.dumps({'v': value})[4:].strip() or '{}'}"


def own_functions(config: StudyConfig) -> dict[str, str]:
    """The settings that name a function of the user's own, package.module:function."""
    named = {"teacher.model": config.teacher.model, "teacher.function": config.teacher.function,
             "student.model": config.student.model}
    return {setting: name for setting, name in named.items() if name and is_function(name)}


def places_named(config: StudyConfig, watch: bool) -> dict[str, str]:
    """The settings that name a host to ask, which may be shown this machine's credentials, or, with `watch`, a place to
    send curves to."""
    asked = {"data.source": [config.data.source], "search.warm_start": [config.search.warm_start],
             "teacher.logits": [config.teacher.logits], "teacher.trained": config.teacher.trained or (),
             "teacher.pretrained": [config.teacher.pretrained], "student.pretrained": [config.student.pretrained]}
    found = {setting: place for setting, places in asked.items() for place in places
             if isinstance(place, str) and names_a_host(place)}
    told = {"watch.mlflow": config.watch.mlflow, "watch.wandb": config.watch.wandb} if watch else {}
    return found | {setting: place for setting, place in told.items() if place}


def is_own_file(study: str) -> bool:
    """Whether a preset or a TOML file is named, and not the folder or URI of a study, nor the settings in one."""
    if "://" in study:
        return False
    path = find_study(study)
    return not Path(study).is_dir() and not (path.name == STUDY_FILE and (path.parent / "stages.json").exists())


def values_named(study: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The settings that a user names on the command line: in a file of their own, and in overrides."""
    values = _read(find_study(study)) if is_own_file(study) else {}
    for override in overrides:
        _apply_override(values, override)
    return values


def texts_in(values: dict[str, Any]) -> set[str]:
    """All texts among settings that are not validated yet."""
    return {text for _, text in _texts(values)}


def functions_in(values: dict[str, Any]) -> set[str]:
    """The functions that settings name which are not validated yet."""
    sections = [section for name in ("teacher", "student") if isinstance(section := values.get(name), dict)]
    named = [section.get(key) for section in sections for key in ("model", "function")]
    return {name for name in named if isinstance(name, str) and is_function(name)}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_study(study: str, overrides: tuple[str, ...] = (), smoke: bool = False) -> StudyConfig:
    """Read a study by preset name, TOML file or study folder, apply `section.key=value` overrides, and validate.

    Raises UserError with one line that names the key and the remedy.
    """
    path = find_study(study)
    values = {"name": path.stem} | _read(path)
    if smoke:  # before the overrides, which have the last word
        values = validate(values).smoke().to_values()
    for override in overrides:
        _apply_override(values, override)
    return validate(values)


def _read(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises UserError."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path} is no study file: it is larger than {LARGEST_FILE >> 20} MiB")
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {one_line(error)}") from None
    for problem in _credentials_in(values):
        raise UserError(f"{path}: {problem}")
    return values


def find_study(study: str) -> Path:
    """The TOML file behind a preset's name, a file or a study folder."""
    path = Path(study)
    if path.is_dir() and (path / STUDY_FILE).is_file():
        return path / STUDY_FILE
    if path.is_file():
        return path
    if study in preset_names():
        return PRESETS / f"{study}.toml"
    if path.is_dir():
        raise UserError(f"{study} is a folder without {STUDY_FILE}; name a study folder, a TOML file or a preset")
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UserError(f"{study} does not exist; name a study folder, a TOML file or a preset "
                        f"({', '.join(preset_names())})")
    nearest = difflib.get_close_matches(study, preset_names(), n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"presets: {', '.join(preset_names())}"
    raise UserError(f"{study!r} is not a preset, a TOML file or a study folder; {hint}")


def validate(values: dict[str, Any]) -> StudyConfig:
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise UserError(f"--set {override} is not of the form section.key=value, e.g. --set search.trials=40")
    value = _value_of(text)
    for part in parts[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {part} is a value, not a section")
    values[parts[-1]] = value


def _value_of(text: str) -> Any:
    """A value as TOML writes it; what is not TOML is a text without its quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


def _explain(error: ValidationError) -> str:
    """The first problem as one line: the key, what is wrong, and the nearest valid name or the valid values."""
    # The innermost; of a misspelt name and the one that is then missing, the misspelt.
    problem = max(error.errors(), key=lambda problem: (len(problem["loc"]), problem["type"] == "extra_forbidden"))
    location = location_of(problem)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _keys_beside(location), n=1, cutoff=0.5)
        known = ", ".join(_keys_beside(location))
        section = ".".join(location[:-1])
        elsewhere = [f"{name}.{setting[0]}" for name, settings in settings_table().items()
                     for setting in settings if name and setting[0] == location[-1]]
        meant = elsewhere or ['.'.join([*location[:-1], name]) for name in nearest]
        remedy = f"did you mean {' or '.join(meant)}?" if meant else f"known: {known}"
        return f"{key} is not a setting{f' of [{section}]' if section else ''}; {remedy}"
    if problem["type"] == "missing" and location[-1].isdigit():
        return f"{'.'.join(location[:-1])} needs two values, [low, high]"
    if problem["type"] == "missing":
        return f"{key} is missing; add it to the study file or use --set {key}=…"
    message = wording([other for other in error.errors() if location_of(other) == location])
    if problem["type"] == "model_type":
        example = "{log = [1e-4, 1e-2]}" if location[0] == "search" and len(location) > 1 else "[section]"
        message = f"must be a table such as {example}"
    if not key:
        return message
    shown = "" if isinstance(problem["input"], dict) else f" = {_shown(problem['input'])}"
    return f"{key}{shown}: {message}"


# How pydantic names the branches of a union, which are no part of a setting's name.
BRANCHES = re.compile(r"(function-|tuple|dict\[|list\[|constrained|nullable).*|float|int|str|bool")


def location_of(problem: dict[str, Any]) -> list[str]:
    """The sections and the key that a problem is about."""
    *parents, last = map(str, problem["loc"] or ("",))
    own = [last] if problem["type"] == "extra_forbidden" or not BRANCHES.fullmatch(last) else []
    return [part for part in (*(part for part in parents if not BRANCHES.fullmatch(part)), *own) if part]


WORDING = {
    "int_type": "must be a whole number", "float_type": "must be a number", "bool_type": "must be true or false",
    "string_type": "must be a text", "string_unicode": "must be a text in UTF-8", "dict_type": "must be a table",
    "tuple_type": "must be a list", "list_type": "must be a list", "model_type": "must be a table",
    "missing": "is missing", "extra_forbidden": "is not known", "finite_number": "must be a finite number",
    "literal_error": "must be {expected}", "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}", "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}", "string_too_short": "must not be empty",
    "string_too_long": "must be at most {max_length} characters long",
    "too_short": "must be a list of at least {min_length}", "too_long": "must be a list of at most {max_length}",
}
PATTERNS = {"name": "must be made of letters, digits, '.', '_' and '-', and begin with a letter or digit"}


def wording(problems: list[dict[str, Any]]) -> str:
    """What is wrong with a value; where it may be of several kinds, what is wrong with it as each of them."""
    said = dict.fromkeys(map(_words_for, problems))
    first, *others = said
    return " or ".join([first, *(text.removeprefix("must be ") for text in others)])


def _words_for(problem: dict[str, Any]) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return PATTERNS.get(str(problem["loc"][-1]), "must be one line without control characters")
    if problem["type"] in WORDING:
        return WORDING[problem["type"]].format_map(
            {name: _readable(limit) for name, limit in problem.get("ctx", {}).items()})
    message = problem["msg"].removeprefix("Value error, ")
    return f"{message[:1].lower()}{message[1:]}"


def _readable(limit: Any) -> str:
    """1,000,000 or 0.5, whether the limit is a whole number or not."""
    return f"{limit:,}".removesuffix(".0") if isinstance(limit, int | float) else str(limit)


def _shown(value: Any) -> str:
    """A value in a message, where a long one is cut."""
    try:
        text = redact(repr(list(value) if isinstance(value, tuple) else value))
    except (ValueError, RecursionError):  # more digits than Python writes, or nested too deep
        return "…"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN - 1]}…"


def _keys_beside(location: list[str]) -> list[str]:
    model: Any = StudyConfig
    for part in location[:-1]:
        model = _section_model(model.model_fields[part]) or Range
    return list(model.model_fields)


def _section_model(field: FieldInfo) -> type[Settings] | None:
    """The group of settings that a field holds, if it holds one."""
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((kind for kind in kinds if hasattr(kind, "model_fields")), None)


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        merged[key] = _merge(merged[key], change) if isinstance(change, dict) else change
    return merged


def check_models(config: StudyConfig, *, classes: int, channels: int, image_size: int) -> None:
    """See whether timm knows the models and optimizers and whether the models take the images. Imports torch.

    Raises UserError.
    """
    from timm.optim import list_optimizers

    from trainables import models

    for section, settings in trained_models(config).items():
        try:
            models.check(settings, classes=classes, channels=channels, image_size=image_size)
        except ValueError as error:
            raise UserError(f"{section}.{error}") from None
    wanted = {"teacher.optimizer": config.teacher.optimizer, "train.optimizer": config.train.optimizer}
    for value in (config.search.optimizer.choice or ()) if config.search.optimizer else ():
        wanted["search.optimizer"] = value
        _check_optimizer("search.optimizer", value, list_optimizers())
    for key, name in wanted.items():
        _check_optimizer(key, name, list_optimizers())


def trained_models(config: StudyConfig) -> dict[str, ModelSettings]:
    """The models that the study itself trains, by section."""
    student = {"student": config.student}
    return student if config.teacher.is_given else {"teacher": config.teacher.model_settings} | student


def _check_optimizer(key: str, name: Any, known: list[str]) -> None:
    if str(name).lower() not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "see timm.optim.list_optimizers()"
        raise UserError(f"{key} = {name!r} is not a timm optimizer; {hint}")
    from trainables.loop import check_optimizer

    try:
        check_optimizer(str(name))
    except ValueError as error:
        raise UserError(f"{key} = {name!r} cannot be used: {error}") from None
