"""What the finished trials mean. Reads a study folder with pandas alone, offline, also while the study still runs.

Start at `report.build`, which writes `results/`; every other module is reached from there.

    study_files    the study folder as DataFrames, accuracies as shares; `frames` has them in percent, for a notebook
    outcome        results.json: a row per trained model, the gain, the evidence;  `verdict` puts it into sentences
    gain           the gain over the tuned baseline with its interval;  `significance` has the formulas
    evidence       is the gain the teacher's or the learning rate's, was the winner lucky, how many seeds are needed
    predictions    test predictions: per class, beside the teacher's, and how far to trust their confidence
    tables         the results as Markdown and for a terminal
    sensitivity/   which hyperparameter matters: the fitted process, the prices of not tuning, the effects
    figures/       one function per plotly figure
    exhibits/      every figure of the report under its name, with heading, caption and warnings
    page/          the HTML page
    report         writes all of it;  `comparison` puts several studies on one page;  `images` writes SVG and PNG

Imports go downwards in this list's spirit: `study_files` imports no other module of the package, `report` imports most.
"""
