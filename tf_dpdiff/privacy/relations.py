"""Neighbouring relations: which pairs of data sets a claim compares, and why the number of units may be public.

'replace_with_zero' is the default. Two data sets D and D' of N units are neighbours if D' is D with one unit replaced
by a null record: an entry that keeps its place and takes part in nothing. Its gradient is zero, it adds to no sum and
no count, and its owner has no images. A person's question is answered by it: what would have been released had my
images not been used?

Why this one. A run divides by the expected batch B and samples with probability q = B / N, and its statement names N
and q. Under 'add_or_remove_one' D and D' differ in N, so a mechanism whose q follows from N is not one mechanism on
both, and a statement that names N tells them apart. With null records N is the same on both sides: nothing that is
computed from N (q, the number of shards, epsilon itself) depends on the unit, and naming N gives nothing away.

Why the same epsilon. Fix a step, everything released before it, and which of the other N - 1 units were sampled. Let s
be the sum of their clipped gradients and v that of the unit in question, of norm at most C. Then the noisy sum is

    on D' (null):  Gaussian(s, sigma^2 C^2)
    on D:          (1 - q) Gaussian(s, sigma^2 C^2) + q Gaussian(s + v, sigma^2 C^2)

which is, letter by letter, the pair that 'add_or_remove_one' gives at a fixed q. Averaging over which others were
sampled does not increase any hockey-stick divergence (joint convexity), and a shift of norm C, for which the pair is
one-dimensional, is the worst. So the pair P = Gaussian(0, sigma^2), Q = (1 - q) Gaussian(0, sigma^2) + q Gaussian(1,
sigma^2) dominates a step in both directions, and its composition dominates the run (Zhu, Dong and Wang 2022, theorem 11
for Poisson sampling and theorem 10 for adaptive composition). dp_accounting's PLD and RDP accountants compute exactly
this for the Poisson-sampled Gaussian under ADD_OR_REMOVE_ONE. Since 0.6 they do so too under REPLACE_SPECIAL, its name
of this relation (Kairouz et al. 2021, definition 1.1), and by the same reduction: a record replaced by a zero record
'results in the same privacy loss distribution' (privacy_loss_distribution.from_gaussian_mechanism). Tests hold what is
computed here against theirs for REPLACE_SPECIAL, and against a numerical integral that knows neither. A release of all
units is the case q = 1. Where at most some number of the sampled units is kept, `truncation` has the proof.

'add_or_remove_one' is accepted too, for those who must state it. It has the same sensitivity and epsilon for a q that
is fixed beforehand; the statement then says that N, which differs between neighbours, is public and not protected.
'replace_one' (one unit replaced by any other) has sensitivities here, but Poisson sampling under it has one accountant
only, dp_accounting's PLD, which nothing independent would bound: no plan is made for it. By group privacy (epsilon,
delta) for null records gives (2 epsilon, (1 + e^epsilon) delta) for it.

References: Kairouz et al. 2021, arXiv:2103.00039, definition 1.1 (a record replaced by a null record); Zhu, Dong and
  Wang 2022, arXiv:2106.08567; Ponomareva et al. 2023, arXiv:2303.00654 (neighbours by zeroing out a record).
"""

REPLACE_WITH_ZERO, ADD_OR_REMOVE_ONE, REPLACE_ONE = 'replace_with_zero', 'add_or_remove_one', 'replace_one'
RELATIONS = (REPLACE_WITH_ZERO, ADD_OR_REMOVE_ONE, REPLACE_ONE)

# For which the accountant's pair of distributions is proven; in words for a statement.
ACCOUNTED = {
    REPLACE_WITH_ZERO: (
        'one unit is replaced with a null record, which takes part in nothing; both have the same number of units, '
        'which is public'
    ),
    ADD_OR_REMOVE_ONE: (
        'add or remove one unit, at the same sampling probability; the number of units is published and not protected'
    ),
}


def check(neighboring_relation: str) -> None:
    """Refuses an unknown relation.

    Raises:
      ValueError: names it.
    """
    if neighboring_relation not in RELATIONS:
        raise ValueError(f'neighboring_relation must be one of {RELATIONS}, got {neighboring_relation!r}.')


def describe(neighboring_relation: str, *, is_truncated: bool = False) -> str:
    """Returns a relation in words, without a full stop.

    Args:
      neighboring_relation: For which an epsilon can be claimed.
      is_truncated: Whether at most some number of the units that a step draws is kept.
    """
    also = (
        '; the null record keeps its place in the draw of a step, where it may be kept instead of another'
        if is_truncated
        else ''
    )
    return ACCOUNTED[neighboring_relation] + also


def check_accounted(neighboring_relation: str) -> None:
    """Refuses a relation for which no epsilon can be claimed.

    Guarantee: for a relation that passes, the accountant's pair of distributions dominates a step, as shown above.

    Raises:
      ValueError: names it and those for which one can.
    """
    if neighboring_relation not in ACCOUNTED:
        raise ValueError(
            f'neighboring_relation must be one of {tuple(ACCOUNTED)}, got {neighboring_relation!r}: no '
            'epsilon is claimed under another relation.'
        )
