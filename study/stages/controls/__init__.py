"""The controls: what else could explain the gain, run beside it. To add one, add a module next to this one, a line
here, its name to `CONTROLS` in `config/sections.py`, and what to call it to `NAMES` in `analysis/controls.py`."""

from kdstudy.stages.base import Stage
from kdstudy.stages.controls import changed_logits, equal_compute, label_smoothing, self_distillation

CONTROLS: tuple[type[Stage], ...] = (
    *label_smoothing.STAGES, *changed_logits.STAGES, *equal_compute.STAGES, *self_distillation.STAGES)
