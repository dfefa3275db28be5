"""kdstudy: does knowledge distillation help a student, with which temperature, alpha and learning rate, and how surely?

    import kdstudy

    settings = kdstudy.load("digits", train={"epochs": 30})    # a preset, a TOML file, a study's folder, or a dict
    kdstudy.plan(settings)                                     # what it will do and cost
    study = kdstudy.run(settings, "studies/mine")              # or go on with what is there
    study = kdstudy.open("studies/mine")                       # also while it runs
    print(study.verdict)
    study.results, study.trials, study.curves                  # pandas DataFrames
    study.figure("effects").show()                             # any figure of the report; study.figures names them

The functions are described in `kdstudy.api`; what they raise is in `kdstudy.errors`.
"""

from typing import Any

__all__ = ["OpenStudy", "load", "open", "plan", "run"]


def __getattr__(name: str) -> Any:
    # At their first use: `import kdstudy.…` in a worker or a command should not wait for pandas. No module of this
    # package may have one of these names, since importing it would put it in the place of the function.
    if name in __all__:
        from kdstudy import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
