"""The audit boundary: everything that the (epsilon, delta) claim rests on, and nothing else.

The modules in reading order, which is the order of the algorithm:

    seeds             where a run's secret randomness comes from
    relations         which data sets a claim compares, and why the number of units may be public
    sampling          which units take part in a step
    owners            units of several images, each of which counts in part
    clipping          per-unit gradients -> a sum of known sensitivity
    noise             one Gaussian draw on that sum
    class_means       another release: noisy per-class sums of images
    feature_means     another one: noisy per-class means of what a public network sees
    teacher           another one: the rounds in which a linear classifier of fixed features learns
    accuracy_release  another one: noisy numbers of right answers on held-out images
    best_of_runs      how many runs are made to release the best of them, and what that costs
    ledger            which releases really happened, and what each is charged as
    renyi             Renyi divergence of a step
    truncation        what a step costs whose batch has a bound
    epsilon_bounds    upper bounds of epsilon, rounding included
    accounting        what the releases cost together
    rounding          epsilon as people see it: never below the truth
    curves            what the releases have cost on the way
    meaning           what an attacker can make of what was released: right guesses, several units of one person
    cautions          what a lay person would take for protection and is none
    plan              the only place where the parts are put together
    settings          looking for the settings of a run that meet a budget
    budget            what all runs on one data set may cost together
    optimizer         clipping and noise behind the keras optimizer interface
    model_check       refuses networks that mix the examples of a batch
    statement         the claim, in words and as JSON
    auditing          the claim put to the test: a lower bound on epsilon
    tradeoffs         sharper lower bounds, by the trade-off curve of the mechanism that is claimed
    sum_checks        exact tests of what the steps release

This package imports numpy, scipy, tensorflow, keras and dp_accounting, and nothing else of this project.
"""
