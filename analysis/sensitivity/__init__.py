"""Which hyperparameter matters, from a search that stopped most of its trials early.

Early stopping breaks the usual importances. A stopped trial's last value was reached on a smaller budget, so it says
more about how far the trial came than about its hyperparameters; and the trials that were not stopped are a selection.
So a Gaussian process is fitted to the reports of all trials, with the epoch as one more input, and read off at the
full budget only. The protected trials of a search, which early stopping never ends, anchor it there. Its
hyperparameters are drawn rather than fixed, and every number is computed from draws of that ensemble on a grid, so
every number has an interval. Trials that failed to learn are no part of it, and nothing is named where no trial is.

    space         the searched parameters with their ranges and scales
    reports       the reports of a search's trials, as the process needs them
    failures      the trials that failed to learn, and where training fails
    process       the Gaussian process and the posterior of its hyperparameters
    budget_model  the surface, an ensemble of it: accuracy as a function of parameters and epoch
    latest        what was computed from the latest surfaces, so that it is computed once
    fit           a study's reports to a fitted surface
    losses        the surface of each loss where they have unlike parameters, and how losses compare
    teachers      how the teachers compare that a search chose from
    grid          the space, read off at the budget
    prices        what it costs to leave one parameter at its default
    effects       which parameter explains the differences, the effect curves, the map
    rungs         whether early epochs predict the end
    findings      all of it, for sensitivity.json
    statements    all of it in sentences, with warnings
    ranking       which trials and which shared values to run again on fresh seeds
"""
