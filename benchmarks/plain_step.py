"""The adversarial training step written out plainly, as the paper's code is described, with switchable optimisations.

An independent transcription of the published method: two-step Linf APGD (Croce and Hein 2020, algorithm 1; Singh,
Croce, Hein 2023), the iterate of largest loss, an update with AdamW on the adversarial images, and an average of the
whole state on the CPU. Without levers it runs eagerly, in float32, with contiguous tensors, keeps the graph of
the forward that only selects, and selects images by boolean indexing. Each lever replaces one of these by the way of
`components.train.train_step`. It shares no code with `components`, so it also serves as a check.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DECAY = 0.9999


@dataclass(frozen=True)
class Levers:
    """The optimisations that are switched on.

    Attributes:
        input_gradient: the attack asks autograd for the images' gradient alone; without it, its backward also computes
            the gradients of all weights.
        frozen: parameters do not require gradients during the attack.
        no_last_graph: the forward that selects the best iterate keeps no graph.
        no_indexing: `torch.where` in place of boolean indexing, which waits for a GPU.
        average_on_device: parameters are averaged on the device, all in one call, and buffers copied.
        fused: AdamW updates all weights in one kernel.
        channels_last: weights and images are stored channels-last.
    """

    input_gradient: bool = True
    frozen: bool = False
    no_last_graph: bool = False
    no_indexing: bool = False
    average_on_device: bool = False
    fused: bool = False
    channels_last: bool = False


class PlainStep:
    """Trains on the same batch, one step per call.

    Args:
        model: copied; the copy trains.
        images: (B, 3, R, R) in [0, 1].
        targets: (B, K) probabilities.
        eps: Linf radius.
        lr: learning rate of AdamW.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, targets: Tensor, *, eps: float, lr: float, levers: Levers
    ) -> None:
        self.eps, self.levers = eps, levers
        layout: Any = {"memory_format": torch.channels_last} if levers.channels_last else {}
        self.model = copy.deepcopy(model).to(**layout).train()
        self.images, self.targets = images.to(**layout), targets
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05, fused=levers.fused or None
        )
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        if not levers.average_on_device:
            self.average.to("cpu")

    def __call__(self) -> Tensor:
        """Attacks, updates and averages; returns the update's loss."""
        self.model.eval()
        self._require_gradients(not self.levers.frozen)
        adversarial = self.attack()
        self._require_gradients(True)
        self.model.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(adversarial), self.targets)
        loss.backward()
        self.optimizer.step()
        self._average()
        return loss.detach()

    def _require_gradients(self, required: bool) -> None:
        if self.levers.frozen:
            self.model.requires_grad_(required)

    def attack(self) -> Tensor:
        """Returns the adversarial images (B, 3, R, R) for the current model."""
        x, step = self.images.clamp(0, 1), 2 * self.eps
        gradient, best_loss = self._gradient(x)
        first = self._into_ball(x + step * gradient.sign(), x)
        gradient, loss = self._gradient(first)
        best, best_loss = self._better(x.clone(), best_loss, first, loss)
        ahead = self._into_ball(first + step * gradient.sign(), x)
        second = self._into_ball(first + 0.75 * (ahead - first) + 0.25 * (first - x), x)
        with torch.set_grad_enabled(not self.levers.no_last_graph):
            loss = self._losses(second.requires_grad_(not self.levers.no_last_graph))
        return self._better(best, best_loss, second.detach(), loss.detach())[0]

    def _losses(self, images: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), self.targets, reduction="none")

    def _gradient(self, images: Tensor) -> tuple[Tensor, Tensor]:
        point = images.detach().clone().requires_grad_()
        losses = self._losses(point)
        if self.levers.input_gradient:
            return torch.autograd.grad(losses.sum(), point)[0], losses.detach()
        losses.sum().backward()
        assert point.grad is not None
        return point.grad, losses.detach()

    def _into_ball(self, point: Tensor, x: Tensor) -> Tensor:
        return torch.min(torch.max(point, x - self.eps), x + self.eps).clamp(0, 1)

    def _better(self, best: Tensor, best_loss: Tensor, new: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Returns for each image the iterate with the larger loss."""
        won = loss > best_loss
        if self.levers.no_indexing:
            return torch.where(won.view(-1, 1, 1, 1), new, best), torch.where(won, loss, best_loss)
        best[won] = new[won].clone()
        best_loss[won] = loss[won].clone()
        return best, best_loss

    @torch.no_grad()
    def _average(self) -> None:
        if self.levers.average_on_device:
            means: list[Tensor] = list(self.average.parameters())
            torch._foreach_lerp_(means, list(self.model.parameters()), 1 - _DECAY)
            for kept, buffer in zip(self.average.buffers(), self.model.buffers()):
                kept.copy_(buffer)
            return
        for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values()):
            mean.copy_(_DECAY * mean + (1 - _DECAY) * value.to("cpu"))
