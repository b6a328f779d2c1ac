"""`python -m tf_dpdiff.cli VERB ...`: what the scripts in bin/ call."""

import importlib
import sys

VERBS = (
    'init',
    'train',
    'sample',
    'evaluate',
    'select',
    'tune',
    'export',
    'release',
    'account',
    'audit',
    'serve',
    'tensorboard',
)


def main() -> None:
    """Runs the verb that is the first argument."""
    verb, *argv = sys.argv[1:] or ['']
    if verb not in VERBS:
        sys.exit(f'usage: python -m tf_dpdiff.cli {{{",".join(VERBS)}}} ...')
    try:
        importlib.import_module(f'tf_dpdiff.cli.{verb}').run(argv)
    except KeyboardInterrupt:  # While libraries are being imported: there is nothing to save yet.
        sys.exit(1)


if __name__ == '__main__':
    main()
