"""Facts of tables that no benchmark measured: what others published, and what a person noted of our own runs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A result of others, as they published it; nothing of it was measured here.

    Attributes:
      of: Whose it is.
      epsilon: At delta = 1e-5, or as published.
      accuracy: On real test images, of a classifier trained on samples.
      on: What it was computed on.
      source: Where it was published.
    """

    of: str
    epsilon: str
    accuracy: str
    on: str
    source: str


_DPIMAGEBENCH = 'DPImageBench (CCS 2025)'
_PAPER = 'Ghalebikesabi et al. 2023, arXiv 2302.13861'

MNIST = (
    Published(
        "DPImageBench's re-implementation of the paper's method", '10 / 1', '97.4% / 94.5%', 'four GPUs', _DPIMAGEBENCH
    ),
    Published('the paper, no public images (unconfirmed)', '10', 'about 98.6%', 'accelerators', _PAPER),
)
CIFAR10 = (
    Published('DP-MERF / DPDM, measured by DPImageBench', '10', '29.0% / 36.8%', 'four GPUs', _DPIMAGEBENCH),
    Published(
        "DPImageBench's re-implementation of the paper's method, 3.8M parameters",
        '10',
        '70.1%',
        'four GPUs',
        _DPIMAGEBENCH,
    ),
    Published('the paper, 80M parameters', '10', '88.0%', 'accelerators', _PAPER),
)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What a maker states of an accelerator.

    Attributes:
      name: As the maker calls it.
      bfloat16_flops: Of dense products, a second.
      memory_bytes: That it reads or writes a second.
      source: Where it is stated.
    """

    name: str
    bfloat16_flops: float
    memory_bytes: float
    source: str


# The numbers "with sparsity" are twice as high.
H100 = Accelerator('H100 SXM', 989e12, 3.35e12, 'https://www.nvidia.com/en-us/data-center/h100/')

# Rows of results.json of which the clock does not tell all: the minutes of the first run that count, and the footnote.
MINUTES = {
    'mnist_eps1': '17\\*\\*',  # 26 by the clock, of which the process was stopped for 10.
    'mnist_plain': '40\\*\\*\\*',  # Beside other work.
}

# Rows of the README that results.json does not have: what docs/results.md and docs/own_images.md tell of our own runs.
DIGITS = [
    'digits, 8x8, support vector machine',
    '10',
    '91.7% to 94.4%',
    '98.3%',
    '3 to 9',
    '`bin/train --gin_file=gin/digits.gin`',
]
# Of images that no recipe was made for: images, hours asked for, minutes, trained on; small network, regression.
OWN_IMAGES = [
    [
        '21,445 red blood cells of 160 patients, at mixed sizes; tested on 6,113 cells of 40 other patients',
        '0.3',
        '14',
        '14,000 samples',
        '82.2%',
        '65.1%',
    ],
    ['', '', '', 'the real cells', '94.4%', '71.2%'],
    ['Fashion-MNIST, 60,000 images in ten classes; a fifth held out', '0.5', '23', '20,000 samples', '80.2%', '73.5%'],
    ['', '', '', '3,060 [matched images](matching.md)', '81.0%', '79.6%'],
]
_SAMPLES, _REAL, *_ = OWN_IMAGES
CELLS = [
    'blood cells of other patients',
    '10',
    _SAMPLES[4],
    _REAL[4],
    _SAMPLES[2],
    f'`bin/init` with `--hours={_SAMPLES[1]}`; labels by the teacher',
]

# Cells of dp_step.json (network, units, views) that were measured on a day when the machine ran at its full speed.
FULL_SPEED = {('1.1M', 16, 64), ('1.1M', 16, 16), ('1.1M', 64, 16), ('1.1M', 256, 4)}

# What the settings of settings.json are, beside how fast.
OF_SETTINGS = {
    'bfloat16': "an option, `UNetConfig.compute_dtype = 'mixed_bfloat16'`",
    'units at a time': 'what a run holds follows from its memory budget',
    'GroupNormalization': 'norm, SiLU, 3x3 convolution alone',
    'channels first': '3x3 convolutions alone',
}
