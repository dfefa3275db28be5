"""kdstudy: does knowledge distillation help a student, with which temperature, alpha and learning rate, and how surely?

    import kdstudy

    settings = kdstudy.load("digits", train={"epochs": 30})    # a preset, a TOML file, a study folder, or a dict
    kdstudy.plan(settings)                                     # print what it will do and cost
    study = kdstudy.run(settings, "studies/mine")              # run it, or resume it
    study = kdstudy.open("studies/mine")                       # read it, also while it runs
    print(study.verdict)
    study.results, study.trials, study.curves                  # pandas DataFrames
    study.figure("effects").show()                             # any figure of the report; study.figures names them

    settings = kdstudy.load("digits", train={"epochs": [75, 150, 300]})    # a series of studies, for `plan` and `run`

See `kdstudy.api` for the functions and `kdstudy.errors` for their exceptions.
"""

from typing import Any

__all__ = ["OpenSeries", "OpenStudy", "load", "open", "plan", "run"]


def __getattr__(name: str) -> Any:
    # Import on first use, so that importing a submodule in a worker or command does not wait for pandas. No module of
    # this package may have one of these names: importing it would replace the function.
    if name in __all__:
        from kdstudy import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
