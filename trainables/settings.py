"""What the training loops need to know, as typed and validated settings (no torch import here)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# TOML has lists where frozen settings hold tuples.
FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown names and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class DataSettings(Settings):
    """Which images there are and how they are split."""

    source: str = "digits"
    image_size: PositiveInt | None = Field(None, description="pixels; what models see unless they say otherwise")
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share of all images held out for search")
    test: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="share held out for the confirmation")
    student_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the training images that the student sees; the teacher sees all"
    )
    split_seed: Annotated[int, Field(ge=0)] = 0


class ViewSettings(Settings):
    """The augmentation. A view of an image is a pure function of (view seed, view, image)."""

    shift: Annotated[int, Field(ge=0)] = Field(0, description="largest shift in stored pixels, zero padded")
    flip: bool = Field(False, description="mirror every other image")
    scale: Fraction = Field(0.0, description="largest relative zoom, in or out")
    mixup: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="largest weight of the mixup partner")
    count: PositiveInt | None = Field(None, description="different views; one per epoch unless given")
    cache_gib: PositiveFloat = Field(4.0, description="memory for teacher logits, all view seeds together")


class ModelSettings(Settings):
    """A timm registry name plus keyword arguments, never patched afterwards, so that timm can rebuild it."""

    model: str
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of timm.create_model")
    pretrained: bool = False
    image_size: PositiveInt | None = Field(None, description="pixels; data.image_size unless given")


class TrainSettings(Settings):
    """How a model is trained; the learning rate comes with each run."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: str = Field("adamw", description="any timm optimizer by name")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.05
    warmup: Fraction = Field(0.1, description="share of all updates with a linearly rising learning rate")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
