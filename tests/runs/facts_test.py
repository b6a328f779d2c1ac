"""Tests of what the papers of a release say, made from statements of runs that were never trained."""

import pytest

from tf_dpdiff.diffusion import process as process_lib
from tf_dpdiff.diffusion import samplers
from tf_dpdiff.diffusion import schedules
from tf_dpdiff.networks import unet
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.privacy import statement as statement_lib
from tf_dpdiff.runs import curator
from tf_dpdiff.runs import deployment
from tf_dpdiff.runs import facts as facts_lib
from tf_dpdiff.runs import folder
from tf_dpdiff.runs import model_card


def make_facts(
    *,
    target_epsilon=1.0,
    has_owners=False,
    relation='replace_with_zero',
    sampling='poisson',
    bound=None,
    preparation='',
    **answers,
):
    config = plan_lib.DpSgdConfig(
        target_delta=1e-5,
        expected_batch_size=100,
        num_steps=50,
        l2_norm_clip=1.0,
        sampling=sampling,
        neighboring_relation=relation,
        truncated_batch_size=bound,
        **({'target_epsilon': target_epsilon} if sampling == 'poisson' else {'noise_multiplier': 2.0}),
    )
    plan = plan_lib.make_plan(config, 5000)
    unit = 'one patient' if has_owners else 'one image'
    statement = statement_lib.PrivacyStatement(
        unit, 'scans', plan, plan.planned_ledger(), 4, has_owners=has_owners, preparation=preparation
    )
    network = unet.UNetConfig(base_channels=4, channel_multipliers=(1,), middle_attention=False, groups=2)
    process = process_lib.DiffusionProcess(schedules.Schedule('cosine', 50), 'v')
    description = folder.ModelDescription((4, 4, 1), ('a', 'b'), network, process, samplers.SamplerConfig('ddim', 2))
    return facts_lib.Facts(
        statement=statement.to_dict(),
        description=description,
        answers=curator.Answers(answers),
        num_samples=10,
        accuracy=None,
        budget=None,
        statement_sha256='0' * 64,
        date='2026-12-01',
    )


def test_several_images_of_one_person_cost_more_until_nothing_useful_is_left():
    facts = make_facts(max_images_per_unit=4)
    counts, costs = zip(*facts.groups)
    assert counts[:3] == ('2', '3', '4')
    shown = [float(cost) for count, cost in facts.groups if 'more' not in count]
    assert shown == sorted(shown) and shown[0] > 1.5 * facts.statement['epsilon'] and shown[-1] <= 20.0
    assert costs[-1] == 'no useful bound is proven' and counts[-1].endswith(' or more')
    assert f'| 2 | {costs[0]} |' in model_card.write(facts, [])


def test_bound_on_the_batch_and_what_a_null_record_does_there_are_told():
    plain, bounded = (model_card.write(make_facts(target_epsilon=4.0, bound=bound), []) for bound in (None, 150))
    for said in (
        'each unit with probability 0.02, at most 150 kept at random',
        'keeps its place in the draw of a step',
    ):
        assert said in ' '.join(bounded.split()) and said not in ' '.join(plain.split())


def test_what_was_done_to_images_is_told_beside_what_the_curator_says():
    name = 'Preprocessing of the private images'
    assert dict(make_facts().to_judge_by())[name] == 'not stated'
    facts = make_facts(preparation='resized to 28x28 (cropped)', preprocessing='Names were cut off.')
    told = dict(facts.to_judge_by())[name]
    assert told == 'When it was read, each was resized to 28x28 (cropped). Before that: Names were cut off.'


def test_people_of_whom_nothing_is_proven_are_a_caution_at_the_top():
    facts = make_facts(target_epsilon=10.0, max_images_per_unit=10)
    (caution,) = facts.cautions
    assert 'One person can have 10 images' in caution and 'not for people' in caution
    card = model_card.write(facts, [])
    assert card.index(caution) < card.index('## Model Details')
    assert not make_facts(target_epsilon=10.0, max_images_per_unit=1).cautions
    assert (
        not make_facts(target_epsilon=10.0).cautions
        and not make_facts(target_epsilon=0.1, max_images_per_unit=2).cautions
    )
    assert not make_facts(target_epsilon=10.0, has_owners=True, max_images_per_unit=10).cautions
    assert not make_facts(sampling='shuffled_batches', max_images_per_unit=10).cautions


def test_owner_with_all_images_is_one_unit():
    facts = make_facts(has_owners=True)
    judged = dict(facts.to_judge_by())
    assert facts.groups == [] and judged['Several images of one person'] == 'covered as one unit'
    assert 'an owner with all of their images' in judged['Neighbouring data sets']
    card = model_card.write(facts, [])
    assert 'whether one patient was in the data' in card and 'images of one person |' not in card
    record = deployment.record(facts)['deployment']['privacy_loss']
    assert (
        record['privacy_unit'].startswith('one patient')
        and 'several images' not in record['privacy_parameters_details']
    )


@pytest.mark.parametrize(
    'relation, words', [('replace_with_zero', 'a null record'), ('add_or_remove_one', 'add or remove one unit')]
)
def test_neighbouring_data_sets_are_those_of_the_accountant(relation, words):
    assert words in make_facts(relation=relation).adjacency


def test_batches_that_are_not_poisson_sampled_have_no_guarantee_and_say_so_first():
    facts = make_facts(sampling='shuffled_batches')
    assert not facts.has_guarantee
    body = model_card.write(facts, []).split('---\n', 2)[2]
    assert body.split('\n\n')[1].startswith('> **NO PRIVACY GUARANTEE') and 'What the Guarantee Means' not in body


def test_text_of_the_curator_cannot_change_the_page():
    answer = '<script>alert(1)</script> [a](https://b) | # c'
    card = model_card.write(make_facts(purpose=answer, name='Scans | <b>'), [('a|b', 'c')])
    assert '<script>' not in card and '[a](' not in card
    assert r'\<script\>alert(1)\</script\> \[a\](https://b) | \# c' in card
    assert r'| `a\|b` | c |' in card


@pytest.mark.parametrize('unstated', ['tuning', 'why_epsilon', 'retention', 'access', 'biases', 'utility'])
def test_nothing_is_made_up_for_the_curator(unstated):
    answers = {question.key: 'stated' for question in curator.QUESTIONS if question.kind == 'a text'}
    before, after = (
        model_card.write(make_facts(**given), [])
        for given in ({**answers, unstated: 'known to me'}, {k: v for k, v in answers.items() if k != unstated})
    )
    assert 'known to me' in before and f'* {unstated}:' not in before
    assert 'not stated' in after and f'* {unstated}:' in after
