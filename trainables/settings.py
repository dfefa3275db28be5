"""What the training loops need to know, as typed and validated settings (no torch import here)."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
# Upper bounds are far above what is of use: they keep a slip of the key from taking an hour or all memory.
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=10**12)]  # of what there is, or all of it
Pixels = Annotated[int, Field(ge=1, le=4096)]
PositiveFloat = Annotated[float, Field(gt=0, le=1_000_000)]
LearningRate = Annotated[float, Field(gt=0, le=1000)]
# What is printed as it is: nothing in it may begin a new line or steer a terminal.
Line = Annotated[str, Field(pattern=r"^\P{Cc}*$")]
# TOML has lists where frozen settings hold tuples.
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown names, wrong types and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False,
                              str_max_length=4096)


# How many images: a share below or equal to 1.0, or a whole number.
Amount = Annotated[float, Field(gt=0, le=1)] | Count


class DataSettings(Settings):
    """Which images there are and how they are split."""

    source: Annotated[Line, Field(min_length=1)] = Field(
        "digits", description="digits, a data set of torchvision, or a folder, a .npz file or their URI"
    )
    label_column: Line | None = Field(None, description="where Parquet files have several that could be meant")
    classes: Annotated[Count | tuple[str, ...] | None, FromList] = Field(
        None, description="a subset: so many, evenly spread over the list of classes, or their names"
    )
    image_size: Pixels | None = Field(None, description="pixels; what models see unless they say otherwise")
    stored_size: Pixels | None = Field(
        None, description="pixels; images that are larger, or not square, are brought to it when they are read"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share held out for the search; unless given, the source's own split, or else a tenth"
    )
    test: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share held out for the confirmation where the source has no test split; a fifth unless given"
    )
    train_images: Amount | None = Field(None, description="how many training images there are, for teacher and student")
    student_images: Amount | None = Field(
        None, description="how many of them the student sees; the teacher sees all"
    )
    unlabelled: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0, description="images without label beside each labelled one in the student's batches, for the soft loss"
    )
    drop_duplicates: bool = Field(False, description="leave out training images that also are in a held-out split")
    limit: Count | None = Field(None, description="at most so many images per split, for a first look")
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="of everything that is held out or left out"
    )


class ViewSettings(Settings):
    """The augmentation. A view of an image is a pure function of (view seed, view, image)."""

    shift: Annotated[int, Field(ge=0, le=4096)] = Field(0, description="largest shift in stored pixels, zero padded")
    flip: bool = Field(False, description="mirror every other image")
    scale: Fraction = Field(0.0, description="largest relative zoom, in or out")
    mixup: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="largest weight of the mixup partner")
    count: PositiveInt | None = Field(None, description="different views; one per epoch unless given")
    cache_gib: PositiveFloat = Field(4.0, description="memory for teacher logits, all view seeds together")


MOST_IN_ARGS = 100_000


def _plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """See whether arguments can be written as JSON, and are no larger than any model takes. Raises ValueError."""
    for name, value in arguments.items():
        _check_argument(name, value, depth=1)
    return arguments


def _check_argument(name: str, value: Any, depth: int) -> None:
    if depth > 10:
        raise ValueError(f"{name.split('.')[0]} is nested more than ten deep")
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_argument(f"{name}.{key}", part, depth + 1)
    elif isinstance(value, int | float):
        if not abs(value) <= MOST_IN_ARGS:
            raise ValueError(f"{name} must be a number up to {MOST_IN_ARGS:,}")
    elif not isinstance(value, str | None):
        raise ValueError(f"{name} must be a number, a text, true, false, a list or a table")


class ModelSettings(Settings):
    """A model by name plus keyword arguments, never patched afterwards, so that it can be rebuilt."""

    model: Line = Field(description="a timm model, with a tag or without, or package.module:function")
    args: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = Field(
        default_factory=dict, description="keyword arguments of timm.create_model"
    )
    pretrained: bool | Line = Field(False, description="true: timm's weights from the hub; or a weights file's path")
    image_size: Pixels | None = Field(None, description="pixels; data.image_size unless given")


class TrainSettings(Settings):
    """How a model is trained; the learning rate comes with each run."""

    epochs: PositiveInt = Field(10, description="the last one counts")
    batch_size: PositiveInt = Field(128, description="labelled images per update")
    optimizer: Line = Field("adamw", description="any timm optimizer by name")
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = Field(0.05, description="the optimizer's")
    warmup: Fraction = Field(0.1, description="share of all updates with a linearly rising learning rate")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="fp32 or bf16; auto: bf16 on GPUs")
    channels_last: Literal["auto", "yes", "no"] = Field("auto", description="memory format; auto: for CNNs")
    compile: bool = Field(False, description="torch.compile the model; pays on GPUs for long runs")
