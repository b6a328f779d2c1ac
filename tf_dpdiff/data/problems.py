"""What is wrong with one's own images, told all at once: nobody should have to start a run again for each bad file."""

_MOST_TOLD = 10


class ProblemsError(ValueError):
    """Several things are wrong.

    Attributes:
      text: A line that counts them, and a line for each of the first ones.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text


class Problems:
    """What is found to be wrong, in the order in which it is found.

    Args:
      where: Where it is, to end 'N problems with ...'.

    Example:
        >>> problems = Problems("the images of 'scans'")
        >>> problems.check()
        >>> problems.add(ValueError('a.png is empty.'))
        >>> problems.add('b.png is a damaged image.')
        >>> problems.check()
        Traceback (most recent call last):
        tf_dpdiff.data.problems.ProblemsError: 2 problems with the images of 'scans':
          a.png is empty.
          b.png is a damaged image.
    """

    def __init__(self, where: str):
        self._where = where
        self._count = 0
        self._first: list[str | Exception] = []

    def __len__(self) -> int:
        return self._count

    def add(self, problem: str | Exception) -> None:
        """Takes down a problem, as one line or as the error that says it."""
        self._count += 1
        if self._count <= _MOST_TOLD:
            self._first.append(problem)

    def check(self) -> None:
        """Raises what was taken down: a single problem as it is, several with their number and the first ten.

        Raises:
          ProblemsError, or the one error that was added, or a ValueError of the one line that was.
        """
        if not self._count:
            return
        if self._count == 1:
            only = self._first[0]
            raise only if isinstance(only, Exception) else ValueError(only)
        lines = [f'{self._count:,} problems with {self._where}:', *map(str, self._first)]
        if self._count > _MOST_TOLD:
            lines.append(f'... and {self._count - _MOST_TOLD:,} more.')
        raise ProblemsError('\n  '.join(lines))
