"""A convolution whose filter gradient is quick for one unit."""

import tensorflow as tf

from tf_dpdiff.keras import layers

# Up to so many pixels of all views of a unit, a product of matrices is quicker than a convolution's filter gradient.
_MAX_PIXELS = 256


class Conv2D(layers.Conv2D):
    """`keras.layers.Conv2D`, whose filter gradient on few pixels is a product of matrices.

    `tf.vectorized_map` knows no batched filter gradient and computes it in a loop, a unit at a time. On small images
    (7x7, few views) the loop takes longer than the work. A product of matrices is mapped without one. The two are equal
    but for rounding. On more pixels, with strides or without padding it is what Keras makes it.
    """

    def convolution_op(self, inputs, kernel):
        """Returns the convolution of inputs [images, height, width, channels] with the kernel."""
        num_images, height, width, _ = inputs.shape
        is_small = num_images is not None and num_images * height * width <= _MAX_PIXELS
        if not is_small or self.padding != 'same' or set(self.strides + self.dilation_rate) != {1} or self.groups != 1:
            return super().convolution_op(inputs, kernel)
        return _convolve_small(inputs, tf.convert_to_tensor(kernel))


@tf.custom_gradient
def _convolve_small(x, kernel):
    """Returns the convolution of images x with a kernel [rows, columns, channels, filters]."""

    def gradient(dy):
        dx = tf.nn.conv2d_transpose(dy, kernel, tf.shape(x), strides=1, padding='SAME')
        return dx, _filter_gradient(x, dy, kernel.shape)

    return tf.nn.conv2d(x, kernel, strides=1, padding='SAME'), gradient


def _filter_gradient(x, dy, kernel_shape) -> tf.Tensor:
    """Returns the gradient of the kernel: what each of its pixels looked at, times dy."""
    num_rows, num_columns, channels, filters = kernel_shape
    height, width = x.shape[1:3]
    paddings = [[(size - 1) // 2, size // 2] for size in (num_rows, num_columns)]
    x = tf.pad(x, [[0, 0], *paddings, [0, 0]])
    # `tf.slice` is mapped to fewer operations than an index of Python.
    shifted = [
        tf.slice(x, [0, i, j, 0], [-1, height, width, channels]) for i in range(num_rows) for j in range(num_columns)
    ]
    patches = tf.reshape(tf.concat(shifted, axis=-1), [-1, num_rows * num_columns * channels])
    return tf.reshape(tf.matmul(patches, tf.reshape(dy, [-1, filters]), transpose_a=True), kernel_shape)
