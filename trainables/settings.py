"""The settings of images, views, models and training, typed and validated. Does not import torch."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
# Upper bounds are far above useful values: they keep a typing error from taking an hour or all memory.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=10**12)]  # a count above the data set's size means all
Pixels = Annotated[int, Field(ge=1, le=4096)]
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
        "digits", description="digits, a data set of torchvision, or the path or URI of a folder, archive or .npz file"
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
        None, description="how many of these the student sees with labels; the teacher sees all"
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


class ViewSettings(Settings):
    """The augmentation. A view of an image is a pure function of (view seed, view, image)."""

    shift: Annotated[int, Field(ge=0, le=4096)] = Field(0, description="largest shift, in stored pixels; zero padded")
    flip: bool = Field(False, description="mirror images, with probability 1/2")
    scale: Fraction = Field(0.0, description="largest zoom in or out, relative to the image")
    mixup: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="largest weight of the mixup partner")
    count: PositiveInt | None = Field(None, description="how many different views; by default one per epoch")
    cache_gib: PositiveFloat = Field(4.0, description="GiB of memory for the teacher's logits, all view seeds together")


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


class ModelSettings(Settings):
    """A model by its name and keyword arguments. Nothing else changes it, and they suffice to rebuild it."""

    model: Line = Field(description="a timm model, with or without a tag, or package.module:function")
    args: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = Field(
        default_factory=dict, description="keyword arguments of timm.create_model"
    )
    pretrained: bool | Line = Field(False, description="true for timm's weights from its hub, or a weights file's path")
    image_size: Pixels | None = Field(None, description="pixels; by default data.image_size")


class TrainSettings(Settings):
    """How a model is trained. The learning rate is not a setting here: each run has its own."""

    epochs: PositiveInt = Field(10, description="passes over the training images; the last one counts")
    batch_size: PositiveInt = Field(128, description="labelled images per update")
    optimizer: Line = Field("adamw", description="the name of any timm optimizer")
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(0.05, description="of the optimizer")
    warmup: Fraction = Field(0.1, description="share of all updates during which the learning rate rises linearly")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="fp32 or bf16; auto means bf16 on GPUs")
    channels_last: Literal["auto", "yes", "no"] = Field("auto", description="memory format; auto means yes for CNNs")
    compile: bool = Field(False, description="use torch.compile; worthwhile for long runs on GPUs")
