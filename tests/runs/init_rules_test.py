"""Tests of the rules that choose settings: they keep the budget, and they go by public facts alone."""

import dataclasses
import inspect
import math
import pathlib
import re

import hypothesis
from hypothesis import strategies as st
import pytest

from tf_dpdiff.data import datasets
from tf_dpdiff.privacy import plan as plan_lib
from tf_dpdiff.runs import forecast
from tf_dpdiff.runs import init_rules

FACTS = init_rules.PublicFacts(20000, 2, (32, 32, 3), 10.0, 4e-6, 1.0, forecast.Speed(300.0, 500.0))


@hypothesis.given(st.integers(1, 10**9))
def test_delta_is_at_most_a_tenth_of_one_over_the_units_and_has_one_digit(num_units):
    delta = init_rules.choose_delta(num_units)
    assert delta <= 1.0 / (10.0 * num_units) * (1.0 + 1e-12)
    assert delta > 1.0 / (20.0 * num_units) * (1.0 - 1e-12)
    digits = f'{delta:.10e}'.split('e')[0]
    assert float(digits) == int(float(digits))


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'num_units': 60000, 'num_classes': 10, 'image_shape': (28, 28, 1), 'epsilon': 1.0, 'delta': 1e-6},
        {'num_units': 160, 'delta': 6e-4},
        {'num_units': 43, 'num_classes': 3, 'delta': 2e-3},
        {'hours': 0.01, 'speed': forecast.Speed(5.0, 8.0)},
        {'hours': 100.0},
        {'num_units': 7, 'delta': 1e-2, 'num_classes': 1},
    ],
)
def test_what_is_chosen_keeps_the_budget_and_fits_the_data(changes):
    facts = dataclasses.replace(FACTS, **changes)
    choice = init_rules.choose(facts)
    config = plan_lib.DpSgdConfig(
        target_delta=facts.delta,
        expected_batch_size=choice.expected_batch_size,
        num_steps=choice.num_steps,
        l2_norm_clip=1e-3,
        target_epsilon=facts.epsilon,
    )
    matching = choice.matching and choice.matching.release
    plan = plan_lib.make_plan(config, facts.num_units, choice.release, teacher=choice.teacher, matching=matching)
    assert plan.epsilon() <= facts.epsilon
    assert 1 <= choice.expected_batch_size <= max(1, facts.num_units // 2)
    assert 1 <= choice.num_views <= 16
    root = math.sqrt(math.prod(facts.image_shape))
    assert 0.25 * root < choice.release.l2_norm_clip <= 0.5 * root
    if choice.release.means_per_class > 1:
        noise = forecast.noise_on_means(choice.release, facts.num_units, facts.num_classes, 'replace_with_zero')
        assert noise <= 0.131  # More means only where they stay clear.
    views = choice.num_steps * choice.expected_batch_size * choice.num_views
    if choice.num_views > 1:
        assert views / facts.speed.private <= 3600.0 * facts.hours


def test_warm_start_comes_first_and_batches_before_steps():
    choices = [init_rules.choose(dataclasses.replace(FACTS, hours=hours)) for hours in (0.1, 0.3, 1.0, 3.0, 30.0)]
    steps, batches, views = zip(
        *((choice.num_steps, choice.expected_batch_size, choice.num_views) for choice in choices)
    )
    assert list(steps) == sorted(steps) and steps[0] == 20 and steps[-1] == 100
    assert list(batches) == sorted(batches) and batches[-1] == 4096
    for choice in choices:
        if choice.expected_batch_size < 4000:
            assert choice.num_steps == 20
        if choice.num_steps < 100:
            assert choice.num_views <= 5
    secs = 0.45 * 3600.0 * 0.3 - forecast.matching_secs(choices[1].matching, 20000, (32, 32, 3), FACTS.speed)
    of_a_third_hour = secs * FACTS.speed.public / init_rules.WARM_START_BATCH
    assert 0.9 * of_a_third_hour <= choices[1].warm_start_steps <= of_a_third_hour
    assert views[-1] == 16 and choices[-1].warm_start_steps == 3000


def rows_of_page():
    """Yields (shape, classes, epsilon, units) of the table that says how many images are needed."""
    text = (pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'planning.md').read_text()
    section = text.partition('## How many images do I need?')[2].partition('##')[0]
    epsilons = [float(epsilon) for epsilon in re.findall(r'epsilon (\d+)', section.partition('|---')[0])]
    for shape, classes, *cells in re.findall(r'\| (grey|colour) .*, (two|ten) classes' + r' \| ([\d,]+)' * 3, section):
        for epsilon, cell in zip(epsilons, cells, strict=True):
            image_shape = {'grey': (28, 28, 1), 'colour': (32, 32, 3)}[shape]
            yield image_shape, {'two': 2, 'ten': 10}[classes], epsilon, int(cell.replace(',', ''))


def test_page_says_from_how_many_images_on_classes_show():
    rows = list(rows_of_page())
    assert len(rows) == 12
    for image_shape, num_classes, epsilon, told in rows:
        clear = []
        for num_units in (round(told * 0.9), round(told * 1.1)):
            facts = init_rules.PublicFacts(
                num_units, num_classes, image_shape, epsilon, init_rules.choose_delta(num_units), 1.0, FACTS.speed
            )
            release = init_rules.choose(facts).release
            noise = forecast.noise_on_means(release, num_units, num_classes, 'replace_with_zero')
            clear.append(noise <= forecast._CLEAR_MEAN)
        assert clear == [False, True], (image_shape, num_classes, epsilon, told)


def test_more_units_buy_more_means_and_few_units_one():
    numbers = [
        init_rules.choose(dataclasses.replace(FACTS, num_units=num_units)).release.means_per_class
        for num_units in (200, 2000, 20000)
    ]
    assert numbers == sorted(numbers) and numbers[0] == 1 < numbers[-1]


def test_images_are_made_to_match_where_noise_and_time_permit():
    def matching(**changes):
        facts = dataclasses.replace(FACTS, **changes)
        config = init_rules.choose(facts).matching
        if config is not None:
            noise = forecast.noise_on_features(config, facts.num_units, facts.num_classes, facts.image_shape)
            assert noise <= 0.3 and 20 <= config.num_networks <= 60 and 500 <= config.num_images <= 10000
            taken = forecast.matching_secs(config, facts.num_units, facts.image_shape, facts.speed)
            assert (
                forecast.noise_on_means(
                    init_rules.choose(facts).release, facts.num_units, facts.num_classes, 'replace_with_zero'
                )
                <= 0.131
            )
            assert taken <= 0.31 * 3600.0 * facts.hours
        return config

    assert matching().num_networks == 60
    # Noise leaves fewer networks, or none.
    assert 20 <= matching(num_units=1000, delta=1e-4).num_networks < 60
    assert matching(num_units=500, delta=2e-4) is None and matching(num_classes=100) is None
    assert matching(epsilon=1.0).num_networks == 60 > matching(epsilon=0.3).num_networks
    assert matching(epsilon=0.1) is None
    # And so does the time.
    assert matching(num_units=10**6, delta=1e-7, hours=6.0).num_networks < 60
    assert matching(hours=0.05) is None
    assert matching(hours=0.3).num_images < matching(hours=1.0).num_images < matching(hours=10.0).num_images == 10000


def test_there_is_a_teacher_where_noise_leaves_it_something_to_say():
    def teacher(**changes):
        return init_rules.choose(dataclasses.replace(FACTS, **changes)).teacher

    many = teacher()
    assert many is not None and many.noise_share(20000, 2 * 4861) < 0.02
    assert teacher(epsilon=1.0) is not None
    assert teacher(num_units=160, delta=6e-4) is None
    assert teacher(num_classes=1) is None and teacher(image_shape=(4, 4, 3)) is None


def test_where_there_is_room_for_few_means_they_get_most_of_the_budget():
    for changes in ({'num_units': 100, 'delta': 1e-3}, {'epsilon': 0.1}):
        few = init_rules.choose(dataclasses.replace(FACTS, **changes))
        assert few.warm_start_share > 0.5 > init_rules.choose(FACTS).warm_start_share


def test_rules_see_no_image_and_no_count_a_class():
    names = {field.name for field in dataclasses.fields(init_rules.PublicFacts)}
    assert names == {
        'num_units', 'num_classes', 'image_shape', 'epsilon', 'delta', 'hours', 'speed'
    }  # fmt: skip
    source = inspect.getsource(init_rules)
    assert datasets.__name__ not in source and 'data import' not in source


def test_learning_rate_falls_with_what_the_noise_leaves_of_the_gradients():
    rates = [init_rules.choose_learning_rate(share) for share in (0.01, 1.0, 7.6, 20.0, 30.0, 1000.0, math.inf)]
    assert rates == sorted(rates) and rates[0] > 0.0
    assert rates[4:] == [3e-3] * 3 and rates[2] <= 3e-4


def test_slower_machine_makes_fewer_images_that_match():
    speeds = [dataclasses.replace(FACTS.speed, changed_pixels=rate) for rate in (6e6, 1.5e6)]
    fast, slow = (init_rules.choose(dataclasses.replace(FACTS, speed=speed)).matching for speed in speeds)
    assert fast.num_images > 2 * slow.num_images
    taken = [forecast.matching_secs(fast, 20000, (32, 32, 3), speed) for speed in speeds]
    assert taken[1] == pytest.approx(4.0 * taken[0])
