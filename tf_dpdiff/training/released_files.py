"""Releases that are made once in the life of a run, and kept in a file of its folder.

On another machine sums may be rounded otherwise, and what is computed anew would be one more release, where the ledger
holds one. So a release is in a file before anything is made from it, and whoever resumes reads it there. The file of
another run is not read, since this one's statement would not cover it.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil
from typing import Any
import zipfile

from tf_dpdiff import files
from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.training import checkpoints
from tf_dpdiff.training import stage as stage_lib

CURE = (
    'it must not be made again. Put the file back from a copy, or name another --workdir; the privacy that the run '
    'has spent stays spent.'
)


def check_not_released(mechanism: str, state: checkpoints.RunState, what_is_missing: str) -> None:
    """Refuses to make a release that the ledger holds.

    Raises:
      FileNotFoundError: if it does.
    """
    if state.ledger.count(mechanism):
        raise FileNotFoundError(f'{what_is_missing}: {CURE}')


def given(plan: plan_lib.DpSgdPlan, private: datasets.ImageDataset, state: checkpoints.RunState) -> dict[str, Any]:
    """Returns what every release is given of a run, beside what it sees in the images: PRIVATE, with the secret.

    Args:
      plan: The privacy plan.
      private: The private images.
      state: Where the run stands.
    """
    assert state.private_seed is not None
    return {
        'labels': private.labels,
        'num_classes': private.num_classes,
        'seed': state.private_seed,
        'neighboring_relation': plan.config.neighboring_relation,
        'generator': plan.config.noise_generator,
        'owners': private.owners,
    }


def record_once(
    plan: plan_lib.DpSgdPlan, release: plan_lib.OtherRelease, state: checkpoints.RunState, save: stage_lib.Save
) -> None:
    """Puts a release whose file is written into the ledger, where it is not yet."""
    if not state.ledger.count(release.mechanism):
        # Saved at once: from here on a run without the file is refused, and not before it has it.
        state.ledger = plan.record_release(state.ledger, release)
        save()


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """`files.replacing` for a release: removes what a process that was killed while it wrote the file has left.

    Made anew, the release may have other noise than what was left: one charge does not cover both.
    """
    for left in path.parent.glob(f'.{path.name}.*'):
        shutil.rmtree(left)
    with files.replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def telling_of_damage(path: pathlib.Path, then: str) -> Iterator[None]:
    """A context in which what goes wrong with a file of arrays is one line that names it, and ends as `then` says."""
    try:
        yield
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is not as it was written ({error}){then}') from error
