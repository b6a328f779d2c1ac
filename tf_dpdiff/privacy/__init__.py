"""The audit boundary: everything that the (epsilon, delta) claim rests on, and nothing else.

The modules in reading order, which is the order of the algorithm:

    seeds           where a run's secret randomness comes from
    sampling        which units take part in a step
    clipping        per-unit gradients -> a sum of known sensitivity
    noise           one Gaussian draw on that sum
    class_means     the other release, of one kind: noisy per-class sums of images
    feature_means   of the other kind: noisy per-class means of what a public network sees
    accounting      what the releases cost together
    ledger          which of them really happened
    budget          what all runs on one data set may cost together
    plan            the only place where the parts are put together
    optimizer       the plan behind the tf.keras optimizer interface
    model_check     refuses networks that mix the examples of a batch
    statement       the claim, in words and as JSON
    auditing        the claim put to the test: a lower bound on epsilon

This package imports numpy, scipy, tensorflow and dp_accounting, and nothing else of this project.
"""
