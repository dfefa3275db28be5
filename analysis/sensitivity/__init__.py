"""Which hyperparameter matters, from a search that stopped most of its trials early.

Early stopping breaks the usual importances. A stopped trial's last value was reached on a smaller budget, so it says
more about how far the trial came than about its hyperparameters; and the trials that were not stopped are a selection.
So one Gaussian process is fitted to the reports of all trials, with the epoch as one more input, and read off at the
full budget only. The protected trials of a search, which early stopping never ends, anchor it there. Every number is
computed from draws of that process on a grid, so every number has an interval.

    space         the searched parameters with their ranges and scales
    reports       the reports of a search's trials, as the process needs them
    budget_model  the process: accuracy as a function of parameters and epoch;  `kernels` has its covariance
    fit           a study's reports to a fitted process
    grid          the space, read off at the budget
    prices        what it costs to leave one parameter at its default
    effects       which parameter explains the differences, the effect curves, the map
    rungs         whether early epochs predict the end
    findings      all of it, for sensitivity.json
    statements    all of it in sentences, with warnings
    ranking       which trials and which shared values to run again on fresh seeds
"""
