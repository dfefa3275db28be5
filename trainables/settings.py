"""The settings of images, views, models and training, typed and validated. Does not import torch."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, lt=1)]
# Upper bounds are far above useful values: they keep a typing error from taking an hour or all memory.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=10**12)]  # a count above the data set's size means all
Natural = Annotated[int, Field(ge=0, le=1_000_000)]
MOST_PIXELS = 4096
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
PositiveFloat = Annotated[float, Field(gt=0, le=1_000_000)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
# Printed verbatim, so it must not hold control characters, which begin a new line or control the terminal.
Line = Annotated[str, Field(pattern=r"^\P{Cc}*$")]
# TOML has lists; frozen settings hold tuples.
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
MOST_IN_ARGS, DEEPEST_ARGS = 100_000, 10  # the largest number, and the deepest nesting, of a model's arguments


class Settings(BaseModel):
    """A frozen group of settings. Unknown names, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False,
                              str_max_length=4096)


# How many images: a share (a float up to 1.0), or a whole number.
Amount = Annotated[float, Field(gt=0, le=1)] | Count


class DataSettings(Settings):
    """Which images there are and how they are split."""

    source: Annotated[Line, Field(min_length=1)] = Field(
        "digits", description="digits, a data set of torchvision, or the path or URI of a folder, archive, Parquet or "
                              ".npz file, such as hf://datasets/OWNER/NAME; a CSV file in a folder may hold its labels"
    )
    labels: Line | None = Field(None, description="a CSV file in the source that lists image files and their labels")
    label_column: Line | None = Field(
        None, description="label column of Parquet and CSV files, if several could be meant"
    )
    image_column: Line | None = Field(
        None, description="likewise the column of images in Parquet, of image files in CSV files"
    )
    skip_unreadable: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="up to how many image files are left out if they cannot be read; the study names them"
    )
    stretch: Annotated[bool | tuple[float, float], FromList] = Field(
        False, description="true: the darkest and the brightest pixel of the data set become 0 and 255; or these "
                           "values: [low, high]"
    )
    classes: Annotated[Count | tuple[str, ...] | None, FromList] = Field(
        None, description="a subset: how many, spread evenly over the list of classes, or their names"
    )
    image_size: Pixels | None = Field(None, description="pixels, for models that do not set their own")
    stored_size: Pixels | None = Field(
        None, description="pixels; larger images, and those that are not square, are resized to it when read; by "
                          "default, if they differ, their median size, at most 224"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share held out for the search; by default the source's own split, else a tenth"
    )
    test: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share held out for the confirmation if the source has no test split; by default a fifth"
    )
    train_images: Amount | None = Field(None, description="how many training images to use, for teacher and student")
    student_images: Amount | None = Field(
        None, description="how many of these the student sees with labels; the teacher sees all; a list makes a series"
    )
    unlabelled: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="unlabelled images per labelled one in the student's batches, for the soft loss alone"
    )
    drop_duplicates: bool = Field(False, description="leave out training images that are also in a held-out split")
    limit: Count | None = Field(None, description="at most this many images per split, for a quick trial run")
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="determines which images are held out or left out"
    )

    @field_validator("stretch")
    @classmethod
    def _rising(cls, stretch: bool | tuple[float, float]) -> bool | tuple[float, float]:
        if isinstance(stretch, tuple) and not stretch[0] < stretch[1]:
            raise ValueError("needs low < high, as in [0, 4095]")
        return stretch


# What `views.augment` stands for; trainables/README.md says where the values come from. A stored study has the name, so
# the values of a name never change.
AUGMENT: dict[str, dict[str, Any]] = {
    "light": {"flip": True, "crop_scale": (0.5, 1.0)},
    "timm": {"flip": True, "crop_scale": (0.08, 1.0), "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "deit": {"flip": True, "crop_scale": (0.08, 1.0), "auto_augment": "randaugment", "randaug_ops": 1,
             "randaug_magnitude": 27, "erase": 0.25, "mixup": 0.5, "cutmix": 1.0},
}
JITTER = ("brightness", "contrast", "saturation", "hue")
Share = Annotated[float, Field(ge=0, le=1)]
AreaShare = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]


MOST_CLASSES = 2**16  # that views.top_k can number
HOW_LOGITS_ARE_KEPT = ("cache_gib", "top_k")  # settings of [views] that change no view


class ViewSettings(Settings):
    """The augmentation. A view of an image is a pure function of (view seed, view, image)."""

    augment: Literal["none", "light", "timm", "deit"] = Field(
        "none", description="values for the settings of this section that you do not give"
    )
    shift: Annotated[int, Field(ge=0, le=4096)] = Field(0, description="largest shift, in stored pixels; zero padded")
    flip: bool = Field(False, description="mirror images, with probability 1/2")
    scale: Fraction = Field(0.0, description="largest zoom in or out, relative to the image")
    crop_scale: Annotated[tuple[AreaShare, AreaShare], FromList] = Field(
        (1.0, 1.0), description="random resized crop: smallest and largest share of the image's area; [1, 1]: no crop"
    )
    crop_ratio: Annotated[tuple[Ratio, Ratio], FromList] = Field(
        (3 / 4, 4 / 3), description="smallest and largest width / height of the crop"
    )
    auto_augment: Literal["none", "randaugment", "trivialaugment"] = Field(
        "none", description="random operations, as torchvision's RandAugment or TrivialAugmentWide"
    )
    randaug_ops: Annotated[int, Field(ge=1, le=10)] = Field(2, description="operations for each image")
    randaug_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(9, description="their strength, of 30")
    brightness: Share = Field(0.0, description="colour jitter: largest relative change of the brightness")
    contrast: Share = Field(0.0, description="likewise of the contrast")
    saturation: Share = Field(0.0, description="likewise of the saturation; grey images have none")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="largest shift of the hue, in turns")
    erase: Share = Field(0.0, description="random erasing: the probability that a box of an image is erased")
    erase_fill: Literal["noise", "constant"] = Field("noise", description="what fills it; constant is middle grey")
    erase_teacher: bool = Field(
        True, description="false: the teacher's logits are for the image before erasing, which only the student sees"
    )
    mixup: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="largest weight of the mixup partner")
    cutmix: Share = Field(
        0.0, description="largest share of the image that a box of its partner covers; with mixup, each image takes "
                         "one or the other, with probability 1/2"
    )
    count: PositiveInt | None = Field(None, description="how many different views; by default one per epoch")
    cache_gib: PositiveFloat = Field(4.0, description="GiB of memory for the teacher's logits, and its features if a "
                                                      "loss reads them, all view seeds together")
    top_k: PositiveInt | None = Field(
        None, description="keep so many of the teacher's logits for an image, the largest, and one number for all "
                          "others; by default, and where that saves nothing, all are kept"
    )

    @model_validator(mode="after")
    def _with_preset(self) -> "ViewSettings":
        # Not by assignment: the settings are frozen, and `model_fields_set` must name only what was given.
        vars(self).update({name: value for name, value in AUGMENT.get(self.augment, {}).items()
                           if name not in self.model_fields_set})
        return self

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"needs [smallest, largest], not {list(bounds)}")
        return bounds

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what only `augment` says, also "none": in a stored study another preset can then replace it."""
        own = {name: type(self).model_fields[name].default for values in AUGMENT.values() for name in values}
        implied = own | AUGMENT.get(self.augment, {})
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set
                or name not in implied or getattr(self, name) != implied[name]}

    @property
    def written_out(self) -> "ViewSettings":
        """The same settings without the name of a preset, for fingerprints: only the values count."""
        return self.model_copy(update={"augment": "none", "erase_teacher": self.erase_teacher or not self.erase})

    def kept_logits(self, classes: int) -> int | None:
        """How many of the teacher's logits are kept of each image; None if they all are, as where `top_k` of them would
        take as much room."""
        return None if self.top_k is None or 2 * self.top_k + 1 >= classes else self.top_k

    def logits_width(self, classes: int) -> int:
        """How many numbers of 16 bits the teacher's logits for an image take."""
        kept = self.kept_logits(classes)
        return classes if kept is None else 2 * kept + 1

    @property
    def crops(self) -> bool:
        return self.crop_scale != (1, 1)

    @property
    def jitter(self) -> tuple[float, ...]:
        """The strengths of the colour jitter, (4,) in the order of JITTER."""
        return tuple(getattr(self, name) for name in JITTER)

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    @property
    def augments(self) -> bool:
        """Whether views differ from the plain images."""
        return bool(self.shift or self.flip or self.scale or self.crops or self.auto_augment != "none"
                    or any(self.jitter) or self.erase or self.mixes)


def _plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments. Raises ValueError if they are not JSON values, or larger than any model's."""
    for name, value in arguments.items():
        _check_argument(name, value, depth=1)
    return arguments


def _check_argument(name: str, value: Any, depth: int) -> None:
    if depth > DEEPEST_ARGS:
        raise ValueError(f"{name.split('.')[0]} is nested more than ten deep")
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_argument(f"{name}.{key}", part, depth + 1)
    elif isinstance(value, int | float):
        if not abs(value) <= MOST_IN_ARGS:
            raise ValueError(f"{name} must be a number up to {MOST_IN_ARGS:,}")
    elif not isinstance(value, str | None):
        raise ValueError(f"{name} must be a number, a string, true, false, a list or a table")


def _of_unit_images(value: float | tuple[float, ...]) -> float | tuple[float, ...]:
    if max(value if isinstance(value, tuple) else (value,)) > 1:
        raise ValueError("must be at most 1, since images are normalised from 0..1; divide numbers for images of "
                         "0..255 by 255")
    return value


def _per_channel(number: Any) -> Any:
    """A number for each channel, or one for all of them."""
    several = Annotated[tuple[number, ...], Field(min_length=1, max_length=100)]
    return Annotated[number | several, FromList, AfterValidator(_of_unit_images)]


class ModelSettings(Settings):
    """A model by its name and keyword arguments, and how it normalises images. Nothing else changes it, and they
    suffice to rebuild it."""

    model: Line = Field(description="a timm model, with or without a tag, or package.module:function")
    args: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = Field(
        default_factory=dict, description="keyword arguments of timm.create_model"
    )
    pretrained: bool | Line = Field(False, description="true for timm's weights from its hub, or a weights file's path")
    image_size: Pixels | None = Field(None, description="pixels; by default data.image_size")
    mean: _per_channel(Annotated[float, Field(ge=0)]) | None = Field(
        None, description="subtracted from images in 0..1: a list per channel or one number; by default the model's own"
    )
    std: _per_channel(Annotated[float, Field(ge=1e-6)]) | None = Field(
        None, description="what is left is divided by it; a list per channel, or one number"
    )
    normalise: Literal["model", "images"] = Field(
        "model", description="images: mean and std are measured on the training images that the model learns from"
    )

    @model_validator(mode="after")
    def _one_normalisation(self) -> "ModelSettings":
        if (self.mean is None) != (self.std is None):
            given, missing = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{given} needs {missing} beside it")
        if self.mean is not None and self.normalise == "images":
            raise ValueError("takes mean and std, or normalise = 'images', which measures them, not both")
        return self


DEFAULT_WARMUP = 0.1
MAIN_TEACHER = "main"  # the name of the teacher that is not one of several others
DROP_ARGUMENTS = {"drop_path": "drop_path_rate", "dropout": "drop_rate"}  # what timm's models call these settings


class TrainSettings(Settings):
    """How a model is trained. The learning rate is not a setting here: each run has its own."""

    epochs: PositiveInt = Field(10, description="passes over the training images; the last one counts; "
                                             "a list makes a series of studies")
    batch_size: PositiveInt = Field(128, description="labelled images per batch; an update takes `accumulate` of these")
    accumulate: PositiveInt = Field(1, description="batches per update, whose gradients are averaged")
    optimizer: Line = Field("adamw", description="the name of any timm optimizer")
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(0.05, description="of the optimizer")
    warmup: Fraction = Field(DEFAULT_WARMUP,
                             description="share of all updates during which the learning rate rises linearly")
    warmup_epochs: Annotated[float, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="the same in epochs, instead of warmup"
    )
    min_lr: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="learning rate at the end of the cosine, before layer_decay and head_lr; not above any "
                         "learning rate"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="learning rate of each layer relative to the next, up to the head's; 1: all alike"
    )
    head_lr: PositiveFloat = Field(1.0, description="factor on the learning rate of the head")
    freeze: Natural | Literal["all"] = Field(
        0, description='first epochs in which only the head learns; "all": it alone learns throughout (linear probe)'
    )
    clip_grad: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        0.0, description="largest norm of all gradients together, clipped before each update; 0: none"
    )
    ema: Fraction = Field(
        0.0, description="decay of the exponential moving average of the weights, which then is the model; 0: none"
    )
    label_smoothing: Fraction = Field(0.0, description="share of the hard loss's target spread over all classes")
    drop_path: Fraction | None = Field(
        None, description="stochastic depth, timm's drop_path_rate; by default as args or the model have it"
    )
    dropout: Fraction | None = Field(
        None, description="timm's drop_rate, mostly before the head; by default as args or the model have it"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="fp32 or bf16; auto means bf16 on GPUs")
    channels_last: Literal["auto", "yes", "no"] = Field("auto", description="memory format; auto means yes for CNNs")
    compile: bool = Field(False, description="use torch.compile; worthwhile for long runs on GPUs")

    @model_validator(mode="after")
    def _within_the_epochs(self) -> "TrainSettings":
        if self.warmup_epochs is not None:
            if self.warmup != DEFAULT_WARMUP:
                raise ValueError(f"warmup = {self.warmup:g} and warmup_epochs = {self.warmup_epochs:g} say the same: "
                                 f"leave warmup at {DEFAULT_WARMUP}, or remove warmup_epochs")
            if self.warmup_epochs >= self.epochs:
                raise ValueError(f"warmup_epochs = {self.warmup_epochs:g} must be smaller than epochs = {self.epochs}")
        if self.freeze != "all" and self.freeze >= self.epochs:
            raise ValueError(f"freeze = {self.freeze} must be smaller than epochs = {self.epochs}; \"all\" trains the "
                             "head alone throughout")
        return self

    def drop_rates(self) -> dict[str, float]:
        """The keyword arguments of timm's models that these settings imply."""
        return {argument: rate for name, argument in DROP_ARGUMENTS.items()
                if (rate := getattr(self, name)) is not None}
