"""What all runs on one data set may cost together, and what they have cost so far."""

import dataclasses
import json
import math

import dp_accounting

from tf_dpdiff.privacy import accounting
from tf_dpdiff.privacy import ledger as ledger_lib
from tf_dpdiff.privacy import rounding

RESERVED, SETTLED = 'reserved', 'settled'
_FORMAT = 'tf_dpdiff privacy budget, version 1'


@dataclasses.dataclass(frozen=True)
class BudgetEntry:
    """The releases of one run from the data set.

    Attributes:
      run_id: The run's public name.
      dataset: Name of the data set, for people.
      status: 'reserved' before the first step, with the planned releases; 'settled' with the real ones, at the end or
        when the budget is told of them.
      ledger: The releases.
      time: When the entry was made, for people.
    """

    run_id: str
    dataset: str
    status: str
    ledger: ledger_lib.Ledger
    time: str

    def __post_init__(self):
        for name in ('run_id', 'dataset', 'time'):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f'{name} must be a text, got {value!r}.')
        if self.status not in (RESERVED, SETTLED):
            raise ValueError(f'status must be {RESERVED!r} or {SETTLED!r}, got {self.status!r}.')


@dataclasses.dataclass(frozen=True)
class Budget:
    """The privacy budget of one data set. Immutable: `reserve`, `settle` and `record_finished` return a new budget.

    Guarantee: everything that the runs of all entries release together is (epsilon(), delta)-differentially private for
      data sets that differ in one unit, and `reserve` does not let epsilon() pass total_epsilon. All releases are
      composed in one accountant at one delta; epsilons of runs are never added up. What has been released is recorded
      whether it fits or not: a budget that is passed in this way is overdrawn, and reserves nothing more.

      Three limits. A data set is known by its exact pixels and labels: overlapping data sets with other pixels (another
      size, one image more) have budgets of their own, which do not see each other. Runs without a budget are not seen.
      And composition by privacy loss distribution is proven for runs whose settings were chosen beforehand; where a run
      is planned by looking at what earlier ones released, read the total by 'rdp', for whose composition there is such
      a proof (Feldman and Zrnic 2021, arXiv:2008.11193).

    Attributes:
      total_epsilon: What all runs together may cost, > 0.
      delta: At which they may, in (0, 1).
      data_fingerprint: PRIVATE: of the data set; None until the first run.
      unit: What is protected, e.g. 'one image'; None until the first run.
      entries: One a run.

    Example:
        >>> ledger = ledger_lib.Ledger().record('noisy_class_means', 2.0, 1.0)
        >>> budget = Budget(total_epsilon=2.5, delta=1e-5)
        >>> budget = budget.reserve('run 1', ledger, dataset='toy', data_fingerprint='f', unit='one image', time='now')
        >>> round(budget.epsilon(), 2)
        1.99
        >>> budget.reserve('run 2', ledger, dataset='toy', data_fingerprint='f', unit='one image', time='now')
        ... # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        BudgetError: the privacy budget would be passed
    """

    total_epsilon: float
    delta: float
    data_fingerprint: str | None = None
    unit: str | None = None
    entries: tuple[BudgetEntry, ...] = ()

    def __post_init__(self):
        if not 0.0 < self.total_epsilon < math.inf:
            raise ValueError(f'total_epsilon must be finite and > 0, got {self.total_epsilon}.')
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f'delta must be in (0, 1), got {self.delta}.')
        run_ids = [entry.run_id for entry in self.entries]
        if len(set(run_ids)) < len(run_ids):
            raise ValueError(f'each run has one entry, got {run_ids}.')
        for name in ('data_fingerprint', 'unit'):
            value = getattr(self, name)
            if (value is None) != (not self.entries) or not isinstance(value, (str, type(None))):
                raise ValueError(f'{name} is known exactly when there are runs, got {value!r} and {len(run_ids)} runs.')

    def entry(self, run_id: str) -> BudgetEntry | None:
        """Returns the entry of a run, or None."""
        return next((entry for entry in self.entries if entry.run_id == run_id), None)

    def dp_event(self) -> dp_accounting.DpEvent:
        """Returns the composition of all entries."""
        events = [entry.ledger.dp_event() for entry in self.entries]
        return dp_accounting.ComposedDpEvent(events) if events else dp_accounting.NoOpDpEvent()

    def epsilon(self, accountant: str = 'pld') -> float:
        """Returns the epsilon of all entries together at the budget's delta, by 'pld' or 'rdp'."""
        return accounting.epsilon(self.dp_event(), self.delta, accountant=accountant)

    def overdrawn_by(self) -> float:
        """Returns the excess of what was released over total_epsilon; infinity where a run had no guarantee."""
        return max(self.epsilon() - self.total_epsilon, 0.0)

    def reserve(
        self, run_id: str, planned: ledger_lib.Ledger, *, dataset: str, data_fingerprint: str, unit: str, time: str
    ) -> 'Budget':
        """Returns the budget with a run's planned releases, to be called before anything is released.

        A run that was reserved before, with the same releases, is not charged again.

        Args:
          run_id: The run's public name.
          planned: All that it will release at most.
          dataset: Name of the data set.
          data_fingerprint: Of the data set.
          unit: What is protected.
          time: Now, for people.

        Raises:
          accounting.BudgetError: if all runs together would cost more than total_epsilon, if they do so already, or if
            the run claims no guarantee.
          ValueError: if the run is on other data, protects another unit, or is known with other releases.
        """
        self._check_same_data(data_fingerprint, unit)
        known = self.entry(run_id)
        if known is not None and known.status == SETTLED and known.ledger.contains(planned):
            return self  # It releases nothing more.
        if self.overdrawn_by():
            raise accounting.BudgetError(f'{self.describe_overdraft()}: nothing more is let in.')
        alone = accounting.epsilon(planned.dp_event(), self.delta)
        if math.isinf(alone):
            raise accounting.BudgetError(
                'a run without noise (or with next to none), or whose batches are not Poisson-sampled, has no epsilon: '
                'no privacy budget can hold it.'
            )
        if known is not None:
            if known.ledger != planned and (known.status == RESERVED or not planned.contains(known.ledger)):
                raise ValueError(f'run {run_id} is in the budget with other releases; a run keeps its plan.')
            if known.status == RESERVED:
                return self
        charged = self._with(BudgetEntry(run_id, dataset, RESERVED, planned, time), data_fingerprint, unit)
        if charged.overdrawn_by():
            up, exact = rounding.round_up, rounding.exact
            raise accounting.BudgetError(
                f'the privacy budget would be passed: the {len(self.entries)} run(s) so far cost '
                f'epsilon={up(self.epsilon())} of {exact(self.total_epsilon)} at delta={exact(self.delta)}, this one '
                f'alone {up(alone)}, all together {up(charged.epsilon())}. Plan it with more noise, fewer steps or a '
                'smaller batch.'
            )
        return charged

    def settle(self, run_id: str, released: ledger_lib.Ledger) -> 'Budget':
        """Returns the budget with a run's real releases in place of the planned ones.

        What has happened is recorded as it is, even if it should cost more than was planned. A run that was settled
        before keeps what it had released then, and one that has ended and released nothing leaves the budget.

        Args:
          run_id: A run that was reserved.
          released: What it has released.

        Raises:
          ValueError: if the run was not reserved.
        """
        known = self.entry(run_id)
        if known is None:
            raise ValueError(f'run {run_id} was not reserved in the budget.')
        if known.status == SETTLED:
            released = known.ledger.union(released)
        if not released.releases:
            others = tuple(entry for entry in self.entries if entry is not known)
            if not others:
                return dataclasses.replace(self, entries=(), data_fingerprint=None, unit=None)
            return dataclasses.replace(self, entries=others)
        return self._with(dataclasses.replace(known, status=SETTLED, ledger=released), self.data_fingerprint, self.unit)

    def record_finished(
        self, run_id: str, released: ledger_lib.Ledger, *, dataset: str, data_fingerprint: str, unit: str, time: str
    ) -> 'Budget':
        """Returns the budget with a run that was made, whether it fits or not and whatever it claims.

        Args:
          run_id: The run's public name.
          released: What it has released.
          dataset: Name of the data set.
          data_fingerprint: Of the data set.
          unit: What is protected.
          time: Now, for people.

        Raises:
          ValueError: if the run is on other data, protects another unit, or is on record with all of this already.
        """
        self._check_same_data(data_fingerprint, unit)
        known = self.entry(run_id)
        if known is None:
            return self._with(BudgetEntry(run_id, dataset, SETTLED, released, time), data_fingerprint, unit)
        if known.status == SETTLED and known.ledger.contains(released):
            raise ValueError(f'run {run_id} is in the budget already, settled {known.time}.')
        return self.settle(run_id, released)

    def record_begun(self, run_id: str, released: ledger_lib.Ledger, **about) -> 'Budget':
        """Returns the budget with what a run has released so far, to be called before more of it is reserved.

        A run may have begun without the budget, or have been killed at its end: what it has released is on record even
        where the rest is then refused.

        Args:
          run_id: The run's public name.
          released: What it has released.
          **about: As in `record_finished`.

        Raises:
          ValueError: if the run is on other data or protects another unit.
        """
        known = self.entry(run_id)
        if known is None:
            return self.record_finished(run_id, released, **about) if released.releases else self
        is_at_its_end = known.status == RESERVED and released.contains(known.ledger)
        if known.ledger.contains(released) and not is_at_its_end:
            return self
        return self.settle(run_id, known.ledger.union(released))

    def describe_overdraft(self) -> str:
        """Returns a sentence that says by how much the budget is overdrawn."""
        spent = f'{len(self.entries)} run(s) on these data'
        if math.isinf(self.epsilon()):
            return (
                f'the privacy budget is overdrawn for good: {spent}, one of them without a guarantee (no noise, or no '
                'Poisson sampling), so that no epsilon holds for all of them'
            )
        up = rounding.round_up
        return (
            f'the privacy budget is overdrawn by epsilon={up(self.overdrawn_by())}: {spent} cost '
            f'{up(self.epsilon())} of {rounding.exact(self.total_epsilon)} at delta={rounding.exact(self.delta)}'
        )

    def to_json(self) -> str:
        """Returns the budget as indented JSON. PRIVATE: it holds the data set's fingerprint."""
        fields = {
            'format': _FORMAT,
            'total_epsilon': self.total_epsilon,
            'delta': self.delta,
            'data_fingerprint': self.data_fingerprint,
            'unit': self.unit,
            'entries': [
                {
                    'run_id': entry.run_id,
                    'dataset': entry.dataset,
                    'status': entry.status,
                    'time': entry.time,
                    'releases': json.loads(entry.ledger.to_json()),
                }
                for entry in self.entries
            ],
        }
        return json.dumps(fields, indent=2) + '\n'

    @classmethod
    def from_json(cls, text: str) -> 'Budget':
        """Inverse of `to_json`.

        Raises:
          ValueError: if the text is no budget; says why.
        """
        try:
            fields = json.loads(text)
            if fields.pop('format') != _FORMAT:
                raise ValueError('it has another format')
            entries = tuple(
                BudgetEntry(ledger=ledger_lib.Ledger.from_json(json.dumps(entry.pop('releases'))), **entry)
                for entry in fields.pop('entries')
            )
            return cls(entries=entries, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'a field is missing, unknown or of a wrong type ({error})') from error

    def _with(self, entry: BudgetEntry, data_fingerprint: str | None, unit: str | None) -> 'Budget':
        """Returns the budget with an entry, in place of the one of the same run where there is one."""
        entries = {known.run_id: known for known in self.entries}
        entries[entry.run_id] = entry
        return dataclasses.replace(self, data_fingerprint=data_fingerprint, unit=unit, entries=tuple(entries.values()))

    def _check_same_data(self, data_fingerprint: str, unit: str) -> None:
        if self.data_fingerprint not in (None, data_fingerprint):
            raise ValueError(
                f'the budget belongs to other data ({self.entries[0].dataset!r}, with other pixels or '
                'labels): every data set has a budget file of its own.'
            )
        if self.unit not in (None, unit):
            raise ValueError(f'the budget protects {self.unit!r}, this run {unit!r}: the two cannot be added up.')
