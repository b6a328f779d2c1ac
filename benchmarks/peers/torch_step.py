"""Measures a step in PyTorch when asked to; a case of dp_step.py, see measuring.py.

plain: training without privacy. hooks: Opacus, whose hooks give the gradient of each view; those of a unit are
averaged, then Opacus's optimizer clips, adds up and adds noise. vmap and loop: what is written by hand, torch.func.vmap
over units or one backward pass after the other.
"""

import pathlib
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

import torch

from benchmarks.peers import peer_case
from benchmarks.peers import torch_unet


class Step:
    """A step: chunks of units are drawn and added up, then the optimizer takes over."""

    is_private = True

    def __init__(self, given, units, views, units_per_chunk, noise_multiplier):
        torch.manual_seed(0)
        self.given, self.units, self.num_views = given, units, views
        self.units_per_chunk, self.noise_multiplier = units_per_chunk, noise_multiplier
        self.network = torch_unet.UNet(given.config, given.image_shape)
        self.names = {torch_unet.from_keras(name, array)[0]: name for name, array in given.weights.items()}
        self.network.load_state_dict(dict(torch_unet.from_keras(*item) for item in given.weights.items()))
        self.weights = list(self.network.parameters())
        self.parameters = sum(weight.numel() for weight in self.weights)
        images, labels = given.draw_images(units)
        self._images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        self._labels = torch.from_numpy(labels.astype('int64'))
        self._signal_rates, self._noise_rates = map(torch.from_numpy, (given.signal_rates, given.noise_rates))
        self.optimizer = torch.optim.Adam(self.weights, lr=peer_case.LEARNING_RATE)
        self.model = self.network

    def step(self):
        """Takes a whole step."""
        starts = range(0, self.units, self.units_per_chunk)
        for start in starts:
            self.add(self._draw(slice(start, start + self.units_per_chunk)), start == starts[-1])
        self.update()

    def _draw(self, places):
        """Returns x_t, t, labels and target of the views of a chunk, [views, ...]."""
        x_start = (self._images[places].float() / 127.5 - 1.0).repeat_interleave(self.num_views, dim=0)
        noise = torch.randn_like(x_start)
        t = torch.randint(0, len(self._signal_rates), x_start.shape[:1])
        signal, spread = self._signal_rates[t, None, None, None], self._noise_rates[t, None, None, None]
        labels = self._labels[places].repeat_interleave(self.num_views)
        return signal * x_start + spread * noise, t, labels, signal * noise - spread * x_start

    def view_losses(self, views):
        """Returns the loss of each view."""
        x_t, t, labels, target = views
        return (self.model(x_t, t, labels) - target).square().mean((1, 2, 3))

    def add(self, views, is_last):
        """Adds what a chunk of views, [views, ...], has to say; is_last: whether the batch ends."""
        raise NotImplementedError

    def update(self):
        """Changes the weights by what was added up."""
        raise NotImplementedError

    def added(self):
        """Returns the sums, tensors shaped like the weights."""
        raise NotImplementedError

    def _from_arrays(self, x_t, t, labels, target=None):
        images = (
            None if images is None else torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            for images in (x_t, target)
        )
        x_t, target = images
        return x_t, torch.from_numpy(t.astype('int64')), torch.from_numpy(labels.astype('int64')), target

    def predict(self, x_t, t, labels):
        """Returns the prediction for arrays of views."""
        with torch.no_grad():
            return self.network(*self._from_arrays(x_t, t, labels)[:3]).numpy().transpose(0, 2, 3, 1)

    def gradient(self, views):
        """Returns the sums over views [units, K, ...], arrays by name."""
        for start in range(0, self.units, self.units_per_chunk):
            chunk = [views[name][start : start + self.units_per_chunk] for name in ('x_t', 't', 'labels', 'target')]
            self.add(self._from_arrays(*(array.reshape(-1, *array.shape[2:]) for array in chunk)), False)
        found = dict(zip((name for name, _ in self.network.named_parameters()), self.added()))
        return {keras_name: torch_unet.to_keras(keras_name, found[name]) for name, keras_name in self.names.items()}


class Plain(Step):
    """Training without privacy."""

    is_private = False

    def add(self, views, is_last):
        (self.view_losses(views).sum() / (self.units * self.num_views)).backward()

    def update(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def added(self):
        return [weight.grad for weight in self.weights]


class Hooks(Step):
    """Opacus, as its BatchMemoryManager runs physical batches."""

    def __init__(self, *args):
        super().__init__(*args)
        from opacus import grad_sample
        from opacus import optimizers

        self.model = grad_sample.GradSampleModule(self.network, loss_reduction='sum')
        self.optimizer = optimizers.DPOptimizer(
            self.optimizer,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.given.l2_norm_clip,
            expected_batch_size=self.units,
        )

    def add(self, views, is_last):
        self.optimizer.zero_grad()
        self.view_losses(views).sum().backward()
        for weight in self.weights:
            if self.num_views > 1:
                of_units = weight.grad_sample.view(-1, self.num_views, *weight.shape)
                weight.grad_sample = of_units.mean(dim=1)
        self.optimizer.signal_skip_step(do_skip=not is_last)
        self.optimizer.step()

    def update(self):
        pass  # The step of the last chunk has done it.

    def added(self):
        return [weight.summed_grad for weight in self.weights]


class _ByHand(Step):
    """What clips, adds up and adds noise itself."""

    def __init__(self, *args):
        super().__init__(*args)
        self._sums = [torch.zeros_like(weight) for weight in self.weights]

    def clip_and_add(self, gradients):
        """Adds gradients, [units, ...] as the weights, that are clipped first."""
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (self.given.l2_norm_clip / (norms + 1e-6)).clamp(max=1.0)
        for total, gradient in zip(self._sums, gradients):
            total += torch.tensordot(factors, gradient, dims=1)

    def update(self):
        stddev = self.noise_multiplier * self.given.l2_norm_clip
        for weight, total in zip(self.weights, self._sums):
            weight.grad = (total + stddev * torch.randn_like(total)) / self.units
            total.zero_()
        self.optimizer.step()

    def added(self):
        return self._sums


class Vmapped(_ByHand):
    """torch.func.vmap of torch.func.grad over the units of a chunk, each with its K views."""

    def __init__(self, *args):
        super().__init__(*args)
        names = [name for name, _ in self.network.named_parameters()]

        def unit_loss(weights, x_t, t, labels, target):
            prediction = torch.func.functional_call(self.network, dict(zip(names, weights)), (x_t, t, labels))
            return (prediction - target).square().mean()

        self._unit_gradients = torch.func.vmap(torch.func.grad(unit_loss), in_dims=(None, 0, 0, 0, 0))

    def add(self, views, is_last):
        of_units = [tensor.unflatten(0, (-1, self.num_views)) for tensor in views]
        self.clip_and_add(self._unit_gradients([weight.detach() for weight in self.weights], *of_units))


class Looped(_ByHand):
    """One backward pass a unit."""

    def add(self, views, is_last):
        for unit in zip(*(tensor.split(self.num_views) for tensor in views)):
            gradients = torch.autograd.grad(self.view_losses(unit).mean(), self.weights)
            self.clip_and_add([gradient[None] for gradient in gradients])


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    peer_case.run(__doc__, {'plain': Plain, 'hooks': Hooks, 'vmap': Vmapped, 'loop': Looped})
