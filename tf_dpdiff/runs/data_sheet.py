"""The data sheet of the synthetic set, readable for programs: croissant.json, with its part on responsible AI.

References: Croissant Format Specification 1.0 and Croissant RAI Specification 1.0 (MLCommons 2024); Gebru et al. 2018,
  arXiv:1803.09010 (what a data sheet tells).
"""

import json
from typing import Any

from tf_dpdiff.runs import facts as facts_lib
from tf_dpdiff.runs import folder

_CONFORMS_TO = ('http://mlcommons.org/croissant/1.0', 'http://mlcommons.org/croissant/RAI/1.0')
_NPZ = 'https://numpy.org/doc/stable/reference/generated/numpy.savez.html'  # There is no media type of .npz files.
# Names of JSON-LD for the terms of the specification.
_CONTEXT = {
    '@language': 'en',
    '@vocab': 'https://schema.org/',
    'citeAs': 'cr:citeAs',
    'column': 'cr:column',
    'conformsTo': 'dct:conformsTo',
    'cr': 'http://mlcommons.org/croissant/',
    'rai': 'http://mlcommons.org/croissant/RAI/',
    'data': {'@id': 'cr:data', '@type': '@json'},
    'dataType': {'@id': 'cr:dataType', '@type': '@vocab'},
    'dct': 'http://purl.org/dc/terms/',
    'equivalentProperty': 'cr:equivalentProperty',
    'examples': {'@id': 'cr:examples', '@type': '@json'},
    'extract': 'cr:extract',
    'field': 'cr:field',
    'fileProperty': 'cr:fileProperty',
    'fileObject': 'cr:fileObject',
    'fileSet': 'cr:fileSet',
    'format': 'cr:format',
    'includes': 'cr:includes',
    'isLiveDataset': 'cr:isLiveDataset',
    'jsonPath': 'cr:jsonPath',
    'key': 'cr:key',
    'md5': 'cr:md5',
    'parentField': 'cr:parentField',
    'path': 'cr:path',
    'recordSet': 'cr:recordSet',
    'references': 'cr:references',
    'regex': 'cr:regex',
    'repeated': 'cr:repeated',
    'replace': 'cr:replace',
    'samplingRate': 'cr:samplingRate',
    'sc': 'https://schema.org/',
    'separator': 'cr:separator',
    'source': 'cr:source',
    'subField': 'cr:subField',
    'transform': 'cr:transform',
}


def write(facts: facts_lib.Facts, samples_sha256: str, samples_bytes: int) -> str:
    """Returns the data sheet.

    Args:
      facts: What is known of the release.
      samples_sha256: Of samples.npz.
      samples_bytes: Its size.
    """
    return json.dumps(_sheet(facts, samples_sha256, samples_bytes), indent=2, ensure_ascii=False) + '\n'


def _sheet(facts: facts_lib.Facts, samples_sha256: str, samples_bytes: int) -> dict[str, Any]:
    say = facts.answers.say
    height, width, channels = facts.description.image_shape
    return {
        '@context': _CONTEXT,
        '@type': 'sc:Dataset',
        'name': facts.name,
        'description': f'{facts.num_samples:,} synthetic images. {facts.claim}',
        'conformsTo': list(_CONFORMS_TO),
        'license': say('license'),
        'creator': [{'@type': 'sc:Organization', 'name': name} for name in facts.answers.names('data_curators')],
        'datePublished': facts.date,
        'version': '1.0.0',
        'isLiveDataset': False,
        'keywords': ['synthetic data', 'differential privacy', 'images'],
        'distribution': [
            {
                '@type': 'cr:FileObject',
                '@id': folder.SAMPLES,
                'name': folder.SAMPLES,
                'description': f'NumPy arrays: images, uint8 [{facts.num_samples}, {height}, {width}, {channels}]; '
                'labels, int32; class_names. A label is the position of a name; their number stands for "no class".',
                'contentUrl': folder.SAMPLES,
                'contentSize': f'{samples_bytes} B',
                'encodingFormat': _NPZ,
                'sha256': samples_sha256,
            }
        ],
        'recordSet': [_classes(facts)] if facts.description.labelled else [],
        **_responsible_ai(facts),
    }


def _classes(facts: facts_lib.Facts) -> dict[str, Any]:
    """Returns the classes as records; the images themselves are in a file that Croissant has no reader for."""
    fields = [('label', 'sc:Integer', 'As in the array labels.'), ('name', 'sc:Text', 'Of the class.')]
    return {
        '@type': 'cr:RecordSet',
        '@id': 'classes',
        'name': 'classes',
        'description': 'What the labels stand for.',
        'dataType': 'sc:Enumeration',
        'key': {'@id': 'classes/label'},
        'field': [
            {'@type': 'cr:Field', '@id': f'classes/{name}', 'name': name, 'description': text, 'dataType': kind}
            for name, kind, text in fields
        ],
        'data': [
            {'classes/label': label, 'classes/name': name} for label, name in enumerate(facts.description.class_names)
        ],
    }


def _responsible_ai(facts: facts_lib.Facts) -> dict[str, Any]:
    say = facts.answers.say
    unit = facts.statement.get('unit', '')
    protected = f'{facts.claim} Unit: {unit} ({facts.statement["unit_is"]}).' if facts.has_guarantee else facts.claim
    return {
        'rai:dataCollection': f'Drawn from a diffusion model of {facts.source}. How the private images were collected: '
        f'{say("collection")}',
        'rai:dataCollectionType': ['Synthetic data'],
        'rai:dataCollectionRawData': f'Whom the private images are of: {say("people")}',
        'rai:dataPreprocessingProtocol': [f'Of the private images: {say("preprocessing")}', facts.post_processing],
        'rai:dataAnnotationProtocol': 'A label is the class that the image was asked for; nobody has looked at it.',
        'rai:dataUseCases': [say('purpose'), f'Not for: {say("not_for")}'],
        'rai:dataLimitations': [
            'Samples are made up; rare findings and small groups come out worse than frequent ones.',
            *facts.statement.get('not_covered', []),
        ],
        'rai:dataBiases': [say('biases')],
        'rai:dataSocialImpact': f'Privacy: {protected}',
        'rai:personalSensitiveInformation': [f'Synthetic images after {facts.source}. {protected}'],
        'rai:dataReleaseMaintenancePlan': f'Later releases: {say("future_releases")} Contact: {say("contact")}',
    }
