"""The record of a deployment of differential privacy, as a registry of deployments takes it: deployment.yaml.

References: the fields are those of the schema of OpenDP's deployments registry (opendp/deployments-registry-data,
  schemas/deployments-schema.yaml), after Ghazi, Nanayakkara and Vadhan's research on what such a record needs.
"""

import re
from typing import Any

import yaml

from tf_dpdiff.runs import facts as facts_lib


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar('tag:yaml.org,2002:str', text, style='|' if '\n' in text else None),
)


def write(facts: facts_lib.Facts) -> str:
    """Returns the record of a release that has a guarantee."""
    return yaml.dump(record(facts), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def record(facts: facts_lib.Facts) -> dict[str, Any]:
    """Returns the fields of the record. What the curator has not answered reads 'not stated', or is left out.

    A choice of the schema that nobody has made cannot read so, and is left out.
    """
    answers, say = facts.answers, facts.answers.say
    curators = answers.names('data_curators')
    return {
        'url_slug': _slug(facts.name, '-'.join(curators), facts.date[:4]),
        'status': 'Draft',
        'tier': answers.tier,
        'deployment': {
            'basic': {
                'name': facts.name,
                'data_curators': curators,
                'intended_use': say('purpose'),
                'data_product_type': 'Synthetic data',
                'data_product_region': say('region'),
                'description': f'{facts.model} {facts.claim} Samples, and the generator that draws more of them.',
                'publication_date': facts.date,
                **_choice('data_product_sector', answers.given.get('sector')),
            },
            'dp_variant': {
                'variant_name': 'Approximate DP',
                'data_domain': f'Labelled images of one size. Whom they are of: {say("people")}',
                'unprotected_quantities': facts.unprotected,
            },
            'privacy_loss': _privacy_loss(facts),
            'deployment_model': {
                'model_name': 'Central',
                'model_name_details': f'A curator holds the private images. Who sees them: {say("trust_model")}',
                'actors': f'Who sees private images: {say("trust_model")}\nWho gets the release: {say("access")}\n'
                f'Adversaries: anyone who has all of the release, whatever else they know. '
                f'By the curator: {say("threat_model")}',
                **_choice('release_type', answers.given.get('release_type')),
                'release_type_details': f'{facts.of_other_releases} Later releases: {say("future_releases")}',
                **_choice('data_source_type', answers.given.get('data_source_type')),
                'access_type': 'Non-interactive',
                'access_type_details': 'The generator draws images without limit; this costs nothing more. Access: '
                f'{say("access")}',
            },
            'accounting': {'post_processing': facts.post_processing, 'composition': facts.composition},
            'implementation': {
                'preprocessing_and_hyperparameter_tuning': f'Preprocessing: {say("preprocessing")}\n'
                f'Tuning: {say("tuning")}',
                'mechanisms': _mechanisms(facts),
                'justification': say('why_epsilon'),
            },
            'administrative': {
                'sources': say('sources'),
                'notes': f'Written by tf_dpdiff {facts.software}. SHA-256 of the privacy statement: '
                f'{facts.statement_sha256}',
                'registry_authors': answers.names('registry_authors'),
            },
        },
    }


def _privacy_loss(facts: facts_lib.Facts) -> dict[str, Any]:
    rates = '; '.join(f'{wrong} wrongly named, at most {right} found' for wrong, right in facts.right_guesses)
    groups = '; '.join(f'{count} images: {cost}' for count, cost in facts.groups)
    return {
        'privacy_unit': f'{facts.statement["unit"]} ({facts.statement["unit_is"]})',
        'privacy_unit_details': f'{facts.adjacency} {facts.contribution}',
        'privacy_parameters': {'epsilon': facts.statement['epsilon'], 'delta': facts.statement['delta']},
        'privacy_parameters_details': f'An attacker who says who was in the data: {rates}.\n'
        f'Mu of Gaussian differential privacy: {facts.mu}.'
        + (f'\nEpsilon for several images of one person: {groups}.' if groups else ''),
    }


def _mechanisms(facts: facts_lib.Facts) -> str:
    wanted = (
        'Floating-point numbers',
        'Randomness',
        'Timing and other side channels',
        'Access to private images, retention',
    )
    by_name = dict(facts.to_judge_by())
    return '\n'.join([facts.mechanisms, *(f'{name}: {by_name[name]}' for name in wanted)])


def _choice(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}


def _slug(*parts: str) -> str:
    """Returns the address of a record, as the registry makes it of name, curators and year."""
    return '-'.join(re.sub(r'\W+', '-', part.lower()) for part in parts).replace('_', '-')
