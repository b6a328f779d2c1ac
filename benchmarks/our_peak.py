"""Measures what a machine can do at best when asked to; a case of limit.py, see measuring.py.

A product of square matrices, a 3x3 convolution, and memory: `a += b` on arrays larger than all caches, which reads two
numbers and writes one for each that is added.
"""

import argparse
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

PRODUCT, CONVOLUTION, MEMORY = 'product', 'convolution', 'memory'
# What is tried: rows of a matrix, channels of a convolution.
SIZES = {PRODUCT: (512, 1024, 2048), CONVOLUTION: (32, 64, 128, 256)}
_IMAGES, _PIXELS = 32, 28
_TIMES_THE_CACHE, _LEAST_MIB = 4, 64


def last_level_cache_mib():
    """Returns the size of the largest cache, as Linux tells it; None where it doesn't."""
    found = []
    for path in pathlib.Path('/sys/devices/system/cpu/cpu0/cache').glob('index*/size'):
        said = re.fullmatch(r'(\d+)([KM])', path.read_text().strip())
        if said:
            found.append(int(said[1]) / (1024 if said[2] == 'K' else 1))
    return max(found, default=None)


def array_mib():
    """Returns the size of an array that no cache holds."""
    return int(max(_LEAST_MIB, _TIMES_THE_CACHE * (last_level_cache_mib() or _LEAST_MIB)))


def make_peak(kind, dtype, size):
    """Returns a function, and the operations (of memory: the bytes moved) of a call of it.

    Args:
      kind: PRODUCT, CONVOLUTION or MEMORY.
      dtype: Of the numbers.
      size: Of SIZES; of memory, the MiB of an array.
    """
    import tensorflow as tf

    if kind == MEMORY:
        numbers = size * 2**20 // tf.as_dtype(dtype).size
        a, b = tf.Variable(tf.zeros([numbers], dtype)), tf.Variable(tf.ones([numbers], dtype))

        @tf.function(autograph=False)
        def add():
            a.assign_add(b)
            return a[0]

        return lambda: add().numpy(), 3 * size * 2**20
    if kind == PRODUCT:
        shapes, work = ([size, size], [size, size]), 2 * size**3
        compute = tf.matmul
    else:
        shapes = ([_IMAGES, _PIXELS, _PIXELS, size], [3, 3, size, size])
        work = 2 * _IMAGES * _PIXELS**2 * 9 * size**2

        def compute(images, kernel):
            return tf.nn.conv2d(images, kernel, strides=1, padding='SAME')

    operands = [tf.cast(tf.random.stateless_normal(shape, (0, 0)), dtype) for shape in shapes]
    compiled = tf.function(compute, autograph=False)
    return lambda: compiled(*operands).numpy(), work


def main():
    """Makes the function and serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('kind', choices=(PRODUCT, CONVOLUTION, MEMORY))
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--size', type=int, help='of the arrays of memory in MiB (default: from the cache)')
    flags = parser.parse_args()
    from benchmarks import measuring

    size = flags.size or array_mib()
    function, work = make_peak(flags.kind, flags.dtype, size)
    measuring.serve(function, work=work, size=size)


if __name__ == '__main__':
    main()
