"""What the finished trials mean. Reads a study folder with pandas alone, offline, also while the study still runs.

    report           writes `results/`, and returns every figure by name: start here
    comparison       several studies on one page
    series           the gain along a series of studies that differ in one setting
    images           the figures as SVG or PNG files
    frames           the results as DataFrames for a notebook, all accuracies in percent

    study_files      the study folder as DataFrames, accuracies as shares
    study_analysis   everything computed from a study, each part once

    gain             the gain over the tuned baseline with its interval
    significance     the formulas behind it: crossed interval, paired t, McNemar, power
    looks            which look at the test images this is, and at which level it tests
    spending         how several looks share one level
    trend            the slope of the gain along a series of studies
    evidence         does the gain come from the teacher, was the winner lucky, how many seeds are needed
    predictions      test predictions: per class, beside the teacher's, and how far to trust their confidence
    sensitivity/     which hyperparameter matters: the fitted process, the prices of not tuning, the effects

    outcome          results.json: the rows of the results table, the gain, the verdict
    verdict          the verdict and its scope as sentences
    cautions         what a reader must know before believing the gain, part of the verdict
    learned          runs that failed to learn, searches whose accuracy still rises
    families         which comparisons are made together, so that their intervals hold together
    tables           the cells of a table row, and the tables as Markdown
    console_table    the results table for a terminal
    trials_table     the searches' trials for a terminal
    number_text      numbers as text

    figures/         one function per plotly figure
    exhibits/        the list of figures, each with its heading, caption and warnings
    page/            the HTML page

Nothing here imports torch, Ray or the rest of kdstudy.
"""
