"""Neighbouring relations: which pairs of data sets a claim compares."""

RELATIONS = ('add_or_remove_one', 'replace_one', 'replace_with_zero')


def check(neighboring_relation: str) -> None:
    """Refuses an unknown relation.

    Raises:
      ValueError: names it.
    """
    if neighboring_relation not in RELATIONS:
        raise ValueError(f'neighboring_relation must be one of {RELATIONS}, got {neighboring_relation!r}.')
