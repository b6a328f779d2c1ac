"""Flags that say how images are sampled, for the verbs that take a finished run's model."""

import argparse
from typing import Any

from tf_dpdiff.cli import command
from tf_dpdiff.diffusion import samplers


def add(parser: command.Parser, *, several_step_counts: bool = False) -> None:
    """Adds the flags that `changes` reads.

    Args:
      parser: The parser of a verb.
      several_step_counts: Whether --num_steps gives a tuple of one or several counts instead of one.
    """
    parser.add_argument('--sampler', choices=samplers.SAMPLERS, help="sampler (default: the run's)")
    if several_step_counts:
        parser.add_argument(
            '--num_steps',
            type=_step_counts,
            metavar='NUM_STEPS[,NUM_STEPS...]',
            help="sampler's steps; with several, as in 10,20,40, each request says how many of these "
            "its images take (default: the run's)",
        )
    else:
        parser.add_argument('--num_steps', type=int, help="sampler's steps (default: the run's)")
    parser.add_argument(
        '--guidance_scale', type=float, help="of classifier-free guidance, 1 for none (default: the run's)"
    )
    parser.add_argument(
        '--num_candidates',
        type=int,
        help='drawn for each image, of which the one is taken that is most clearly of its class; for runs with a '
        "teacher, or whose warm start released feature means (default: the run's)",
    )


def _step_counts(text: str) -> tuple[int, ...]:
    """Reads a flag; argparse says what is wrong with it."""
    try:
        counts = tuple(int(part) for part in text.split(','))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number, nor several as in 10,20,40') from error
    if len(set(counts)) < len(counts):
        raise argparse.ArgumentTypeError(f'{text!r} names a count twice')
    return counts


def changes(flags) -> dict[str, Any]:
    """Returns the fields of a SamplerConfig that the flags give."""
    given = {
        'name': flags.sampler,
        'num_steps': flags.num_steps,
        'guidance_scale': flags.guidance_scale,
        'num_candidates': flags.num_candidates,
    }
    return {key: value for key, value in given.items() if value is not None}
