"""bin/audit: is the implementation as private as it claims? Runs with canaries, and attacks on what they release."""

import math
import pathlib
import sys

import gin
from rich import console as rich_console

from tf_dpdiff import progress
from tf_dpdiff.cli import command
from tf_dpdiff.cli import gin_config
from tf_dpdiff.cli import strategy_flags
from tf_dpdiff.evaluation import gradient_audit as gradient_audit_result
from tf_dpdiff.evaluation import membership
from tf_dpdiff.evaluation import sample_attacks
from tf_dpdiff.privacy import auditing
from tf_dpdiff.privacy import rounding
from tf_dpdiff.runs import audit as audit_lib
from tf_dpdiff.runs import clock as clock_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import gradient_audit as gradient_audit_lib
from tf_dpdiff.runs import sample_audit
from tf_dpdiff.training import strategies

_DEFAULT_WORKDIR = 'runs/audit'


def _show(recipe: audit_lib.AuditRecipe) -> None:
    """Prints what would be done."""
    prepared = audit_lib.prepare(recipe, say=progress.sayer('audit'))
    recipe.data.look_at('train')
    prepared.build.open_origin()  # Which the audit would start from.
    canaries, plan = recipe.canaries, prepared.plan.config
    most = auditing.epsilon_lower_bound(
        canaries.num_canaries,
        canaries.num_guesses,
        num_correct=canaries.num_guesses,
        delta=plan.target_delta,
        confidence=canaries.confidence,
    )
    table = command.facts_table('what would be done')
    table.add_row(
        'units', f'{recipe.data.spec.num_units:,} and {canaries.num_canaries:,} canaries of kind {canaries.kind!r}'
    )
    table.add_row(
        'private steps',
        f'{plan.num_steps:,} of {plan.expected_batch_size:,} expected units x '
        f'{recipe.finetuning.views.augmentation_multiplicity} views',
    )
    table.add_row('proven epsilon', _claim(prepared.plan.epsilon(), plan.target_delta))
    table.add_row('most that can be shown', _at_least(most, canaries.confidence))
    print(gin.operative_config_str())
    rich_console.Console().print(table)


def _print_results(workdir: pathlib.Path, kind: str, done: audit_lib.FinishedAudit) -> None:
    result = done.result
    table = command.facts_table(f'audit ({command.NOT_TO_BE_RELEASED})')
    table.add_row('proven epsilon', _claim(result.proven_epsilon, result.delta))
    table.add_row('lower bound', _at_least(result.epsilon_lower_bound, result.confidence))
    table.add_row('most that can be shown', _at_least(result.most_that_can_be_shown))
    table.add_row(
        'canaries',
        f'{result.num_canaries} of kind {kind!r}; {result.num_correct} of {result.num_guesses} guesses were correct',
    )
    table.add_row('verdict', _verdict(result.is_violation, result.proven_epsilon))
    _add_attack(table, done.attack, workdir / folder.NON_PRIVATE / audit_lib.AUDIT)
    table.add_row('time', done.time)
    if done.is_public:
        table.add_row('may be published', f'{workdir / folder.AUDIT_SUMMARY}, .txt')
    rich_console.Console().print(table)
    if result.is_violation:
        bound, proven = rounding.round_down(result.epsilon_lower_bound), rounding.round_up(result.proven_epsilon)
        _accuse(f'the lower bound {bound} exceeds the proven epsilon {proven}', result.confidence)


def _show_gradient_audit(recipe: audit_lib.AuditRecipe) -> None:
    """Prints what an audit by gradients would do."""
    prepared = gradient_audit_lib.prepare(recipe, say=progress.sayer('audit'))
    plan = prepared.plan.config
    table = command.facts_table('what would be done')
    table.add_row('units', f'{prepared.plan.num_units:,}, of which {len(prepared.canaries):,} are gradient canaries')
    table.add_row('private steps', f'{plan.num_steps:,} of {plan.expected_batch_size:,} expected units')
    table.add_row('proven epsilon', _claim(prepared.plan.epsilon(), plan.target_delta))
    expected = prepared.judge.expected()
    if expected is not None:
        table.add_row('to be expected', _at_least(expected, recipe.gradient_canaries.confidence))
    table.add_row('most that can be shown', _at_least(prepared.judge.most()))
    print(gin.operative_config_str())
    rich_console.Console().print(table)


def _print_gradient_audit(
    workdir: pathlib.Path, result: gradient_audit_result.GradientAuditResult, clock: clock_lib.Clock
) -> None:
    found = result.found
    table = command.facts_table('audit by gradient canaries')
    table.add_row('proven epsilon', _claim(result.proven_epsilon, result.delta))
    table.add_row('lower bound', _at_least(found.independent, result.confidence))
    table.add_row(
        '', f'from {found.num_correct:,} of {result.num_canaries:,} right guesses, about independent canaries'
    )
    table.add_row('', f'{_at_least(found.one_run)} without independence, for this mechanism')
    table.add_row('', f'{_at_least(found.any_program)} for any program')
    if result.expected is not None:
        table.add_row('to be expected', f'{_at_least(result.expected)} of a correct program')
    table.add_row('most that can be shown', _at_least(result.most_that_can_be_shown))
    for claim, p_value in result.p_values.items():
        kept = 'not refuted' if p_value >= gradient_audit_result.SMALLEST_P_VALUE else 'REFUTED'
        table.add_row('check', f'{claim}: {kept} (p = {p_value:.2g})')
    table.add_row('verdict', _verdict(result.is_violation, result.proven_epsilon))
    table.add_row('time', clock.describe())
    table.add_row('may be published', f'{workdir / folder.AUDIT_SUMMARY}, .txt')
    rich_console.Console().print(table)
    if result.is_violation:
        _accuse('; '.join(result.faults), result.confidence)


def _accuse(fault: str, confidence: float) -> None:
    print(
        f'audit: {fault}: the implementation or the accounting is wrong; do not release. (At '
        f'{rounding.percent(confidence)} confidence a correct one may be accused by chance: a second audit tells.)',
        file=sys.stderr,
    )


def _verdict(is_violation: bool, proven_epsilon: float) -> str:
    if is_violation:
        return 'THE IMPLEMENTATION OR THE ACCOUNTING IS WRONG; DO NOT RELEASE'
    return 'no fault was found' if math.isfinite(proven_epsilon) else 'nothing is claimed'


def _at_least(epsilon: float, confidence: float | None = None) -> str:
    bound = f'epsilon >= {rounding.round_down(epsilon)}'
    return bound if confidence is None else f'{bound} at {rounding.percent(confidence)} confidence'


def _claim(epsilon: float, delta: float) -> str:
    if not math.isfinite(epsilon):
        return 'none claimed'
    return f'{rounding.round_up(epsilon)} at delta = {rounding.exact(delta)}'


def _add_attack(table, attack: membership.MembershipAttack, written: pathlib.Path) -> None:
    _add_rates(table, 'attack on real images', attack)
    for caveat in attack.caveats():
        table.add_row('', f'({caveat})')
    table.add_row('not to be released', f'{written}.json, .png')


def _add_rates(table, name: str, attack: membership.MembershipAttack) -> None:
    table.add_row(
        name,
        f'AUC {attack.auc:.3f} (guessing: 0.5 ± {attack.auc_by_chance:.3f}), {attack.num_members:,} members and '
        f'{attack.num_non_members:,} non-members',
    )
    for rate, value, interval in zip(
        membership.FALSE_POSITIVE_RATES, attack.true_positive_rates, attack.true_positive_intervals
    ):
        table.add_row(
            '',
            f'true positive rate {value:.2%} ({interval[0]:.2%} to {interval[1]:.2%}) at a false positive rate of '
            f'{rate:.1%}',
        )


def _print_sample_attacks(found: sample_attacks.SampleAttacks, written: pathlib.Path) -> None:
    table = command.facts_table(f'attacks on samples alone ({command.NOT_TO_BE_RELEASED})')
    table.add_row('samples', f'{found.num_samples:,}; a target is {found.unit}')
    table.add_row('claim', found.claim_text())
    table.add_row('reference', found.reference)
    for attack in found.attacks:
        _add_rates(table, f'{attack.name}, {attack.space}', attack.found)
    for caveat in found.attacks[0].found.caveats():
        table.add_row('', f'({caveat})')
    table.add_row('verdict', found.verdict)
    table.add_row('not to be released', str(written))
    rich_console.Console().print(table)
    if found.faults:
        print(
            f'audit: {found.verdict}; do not release before you know which. (A correct program is accused by chance '
            f'in one of twenty such audits at most.)',
            file=sys.stderr,
        )


def main(flags) -> int:
    """Runs the verb."""
    clock = clock_lib.Clock()
    command.quieten_libraries()
    gin_config.parse_flags(flags, 'audit')
    if flags.membership and flags.dry_run:
        raise command.UsageError('--membership trains nothing, so it has no --dry_run.')
    if flags.samples and flags.dry_run:
        raise command.UsageError('--samples trains no model of images, so it has no --dry_run.')
    asked = [f'--{name}' for name in ('membership', 'gradient_canaries', 'samples') if getattr(flags, name)]
    if len(asked) > 1:
        raise command.UsageError(f'{asked[0]} and {asked[1]} are two audits: ask for one of them.')
    given_workdir, flags.workdir = flags.workdir, flags.workdir or _DEFAULT_WORKDIR
    strategy = strategy_flags.check_one_process(strategy_flags.configured(flags.strategy), 'an audit')
    if flags.dry_run:
        show = _show_gradient_audit if flags.gradient_canaries else _show
        show(gin_config.make('audit'))
        return command.DONE
    if flags.membership:
        recipe, workdir = gin_config.make('audit'), pathlib.Path(flags.workdir).expanduser()
        attack = audit_lib.attack_run(workdir, recipe.data, recipe.canaries)
        table = command.facts_table(f'membership attack ({command.NOT_TO_BE_RELEASED})')
        _add_attack(table, attack, workdir / folder.NON_PRIVATE / audit_lib.MEMBERSHIP)
        rich_console.Console().print(table)
        return command.DONE
    if flags.samples:
        gin_config.leave_out('audit', 'pretraining', 'warm_start')  # Nothing is trained.
        recipe = gin_config.make('audit')
        found, written = sample_audit.attack_samples(
            pathlib.Path(flags.samples),
            recipe.data,
            recipe.sample_attacks,
            workdir=pathlib.Path(given_workdir).expanduser() if given_workdir else None,
            default_workdir=pathlib.Path(_DEFAULT_WORKDIR),
        )
        _print_sample_attacks(found, written)
        return command.FAILED if found.faults else command.DONE
    replicas = strategies.start(strategy)
    with folder.training_in(flags.workdir) as workdir, command.stopping('audit'):
        recipe = gin_config.make('audit')
        if flags.gradient_canaries:
            result = gradient_audit_lib.audit(
                recipe, workdir, configuration=gin.operative_config_str(), replicas=replicas
            )
            _print_gradient_audit(workdir, result, clock)
            return command.FAILED if result.is_violation else command.DONE
        done = audit_lib.audit(
            recipe, workdir, configuration=gin.operative_config_str(), replicas=replicas, clock=clock
        )
        _print_results(workdir, recipe.canaries.kind, done)
        return command.FAILED if done.result.is_violation else command.DONE
    return command.FAILED  # It was asked to stop.


def run(argv: list[str] | None = None) -> None:
    """Entry point of bin/audit."""
    parser = command.Parser('audit', __doc__)
    parser.add_gin_flags(is_one_process=True)
    parser.add_argument(
        '--workdir', help=f'folder of the audit (default: {_DEFAULT_WORKDIR}, or the run that --samples lie in)'
    )
    parser.add_argument(
        '--membership', action='store_true', help='only attack the model of the run in --workdir; trains nothing'
    )
    parser.add_argument(
        '--gradient_canaries',
        action='store_true',
        help='attack the private steps by units whose gradients are known; reads no image',
    )
    parser.add_argument(
        '--samples',
        metavar='PATH',
        help='only attack samples, by what they look like: a file or folder of bin/sample, a run or a release',
    )
    parser.add_argument('--dry_run', action='store_true', help='print configuration and claim, and exit')
    sys.exit(command.run(parser, main, argv))
