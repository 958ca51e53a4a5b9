"""The cost of an adversarial training step: in counted FLOPs, in time, and compared to the same step written plainly.

    python benchmarks/adversarial_step.py [--json] [--quick] [--eager] [--only flops|small|large|gpu]

Needs torch, timm, `benchmarks` and `components`, so that it can be copied to a bare GPU machine. The plain step is
`benchmarks.plain_step`; "as released" asks autograd for the images' gradient alone, as the paper's code is described to
do. All compared steps take turns in one run, on the same weights and batch, with AdamW and the EMA in every step. On
a CPU this repository's steps run in a second process, which keeps freed memory as its trainings do
(`benchmarks.subprocess_timer`); the plain ones run in this process.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Run as a file, Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.counted_flops import step_flops
from benchmarks.plain_step import Levers, PlainStep
from benchmarks.rows import Row, row, show
from benchmarks.subprocess_timer import subprocess_timer
from benchmarks.timing import Times, Work, side_by_side
from components.models import build_model
from components.train.optimizer import Ema, build_optimizer
from components.train.train_step import AttackSettings, Precision, train_step

EPS, LR, CLASSES = 4 / 255, 1e-6, 1000
ATTACKS = {
    "clean": None,
    "best": AttackSettings("Linf", EPS, 2),
    "last": AttackSettings("Linf", EPS, 2, return_iterate="last"),
}
LEVERS = {
    "input gradient alone": "input_gradient",
    "frozen parameters": "frozen",
    "no graph in the selecting forward": "no_last_graph",
    "no boolean indexing": "no_indexing",
    "average on the device, in one call": "average_on_device",
    "fused AdamW": "fused",
    "channels-last": "channels_last",
}
ALL_LEVERS = Levers(**dict.fromkeys(LEVERS.values(), True))


@dataclass(frozen=True)
class Case:
    """A network and a batch that are timed."""

    network: str
    side: int
    batch: int
    rounds: int

    @property
    def name(self) -> str:
        """The name in rows."""
        return f"{self.network}, {self.side} px, batch {self.batch}"


SMALL, LARGE = Case("convnext_micro", 32, 64, 15), Case("convnext_tiny", 224, 8, 5)
TINY = Case("convnext_micro", 32, 4, 1)
ON_GPU = Case("convnext_tiny", 224, 128, 5)


class CaseSteps:
    """Makes training steps on one case's network and batch."""

    def __init__(self, case: Case, device: str) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        self.model = build_model(case.network, num_classes=CLASSES, resolution=case.side).to(device)
        self.images = torch.rand(case.batch, 3, case.side, case.side).to(device)
        self.targets = torch.softmax(3 * torch.randn(case.batch, CLASSES), dim=1).to(device)

    def ours(
        self, attack: AttackSettings | None, *, dtype: torch.dtype = torch.float32, compiled: bool = False
    ) -> Callable[[], Tensor]:
        """Returns this repository's step, with the EMA, as the training loop calls them; it returns the mean loss."""
        layout: Any = {"memory_format": torch.channels_last}
        model = copy.deepcopy(self.model).to(**layout).train()
        optimizer = build_optimizer(
            model, no_weight_decay="released_code", convolutional=True, betas=(0.9, 0.95), weight_decay=0.05, fused=True
        )
        for group in optimizer.param_groups:
            group["lr"] = LR
        ema, images, size = Ema(model, 0.9999), self.images.to(**layout), self.case.batch
        forward: Any = torch.compile(model) if compiled else model
        precision = Precision(self.device, dtype)

        def step() -> Tensor:
            done = train_step(
                forward, optimizer, images, self.targets, attack=attack, precision=precision, global_batch=size
            )
            ema.update()
            return done.sums[0] / size

        return step

    def plain(self, levers: Levers) -> PlainStep:
        """Returns the plain step with some levers."""
        return PlainStep(self.model, self.images, self.targets, eps=EPS, lr=LR, levers=levers)


def network(name: str, side: int) -> Callable[[], nn.Module]:
    return lambda: build_model(name, num_classes=CLASSES, resolution=side)


def flop_ratios(name: str, side: int) -> dict[str, float]:
    """Returns the FLOPs of each attack's step relative to the clean step's."""
    counts = {
        form: step_flops(network(name, side), attack, resolution=side, classes=CLASSES)
        for form, attack in ATTACKS.items()
    }
    return {form: count / counts["clean"] for form, count in counts.items()}


def flop_rows() -> list[Row]:
    ratios, what = flop_ratios("convnext_tiny", 224), "FLOPs, adversarial / clean step, convnext_tiny at 224 px"
    return [
        row(f"{what}: best iterate (2.66 to 2.68)", ratios["best"], "ratio", least=2.66, most=2.68),
        row(f"{what}: last iterate", ratios["last"], "ratio", most=2.34),
    ]


def our_works(case: Case, *, compile_too: bool) -> dict[str, Work]:
    """Makes this repository's steps on a CPU, and the plain one with all levers; called in the second process."""
    steps = CaseSteps(case, "cpu")
    works: dict[str, Work] = {form: steps.ours(attack) for form, attack in ATTACKS.items()}
    if compile_too:
        works["compiled"] = steps.ours(ATTACKS["best"], compiled=True)
    return {**works, "plain, all levers": steps.plain(ALL_LEVERS)}


def step_rows(case: Case, *, compile_too: bool, levers_too: bool) -> list[Row]:
    """Compares both iterates with the clean step and the plain steps, in float32; and each lever's share."""
    steps, counted = CaseSteps(case, "cpu"), flop_ratios(case.network, case.side)
    works: dict[str, Work] = {"backward": steps.plain(Levers(input_gradient=False)), "released": steps.plain(Levers())}
    levers = lever_works(steps) if levers_too else {}
    with subprocess_timer(functools.partial(our_works, case, compile_too=compile_too)) as ours:
        times = side_by_side({**works, **levers}, rounds=case.rounds, warmup=2, in_subprocess=ours)
    on, fastest = case.name, "compiled" if compile_too else "best"
    rows = [
        row(
            f"time ratio / FLOP ratio, {form} iterate, {on}",
            times.ratio(form, "clean") / counted[form],
            "ratio",
            most=1.10,
        )
        for form in ("best", "last")
    ]
    rows += [
        row(f"speed, best iterate, all levers / released, {on}", times.ratio("released", fastest), "ratio", least=1.3),
        row(f"speed, best iterate, not compiled / released, {on}", times.ratio("released", "best"), "ratio"),
        row(f"speed, best iterate / weights' gradients too, {on}", times.ratio("backward", "best"), "ratio"),
        row(f"speed, last iterate / released, {on}", times.ratio("released", "last"), "ratio"),
    ]
    if levers_too:
        rows += lever_rows(case, times, ["backward", "released", *levers])
    if compile_too:
        rows.append(row(f"lever torch.compile, {on}", times.ratio("best", "compiled"), "ratio"))
    shown = ("best", "last", "released", *(["compiled"] if compile_too else []))
    return rows + [speed_row(f"{form}, {on}", times, form, case) for form in shown]


def speed_row(name: str, times: Times, piece: str, case: Case) -> Row:
    return row(f"speed: {name}", case.batch / times.median(piece), "images/s")


def lever_works(steps: CaseSteps) -> dict[str, Work]:
    """Makes plain steps with the levers switched on one after the other; the released step has the first one."""
    levers, works = Levers(), {}
    for name, attribute in list(LEVERS.items())[1:]:
        levers = replace(levers, **{attribute: True})
        works[name] = steps.plain(levers)
    return works


def lever_rows(case: Case, times: Times, order: Sequence[str]) -> list[Row]:
    """Returns each lever's share: the speed-up when it is switched on after the previous ones."""
    titles = {"released": next(iter(LEVERS))}
    rows = [
        row(f"lever {titles.get(after, after)}, {case.name}", times.ratio(before, after), "ratio")
        for before, after in itertools.pairwise(order)
    ]
    kept, ours = times.ratio(order[-1], "plain, all levers"), times.ratio("plain, all levers", "best")
    return [
        *rows,
        row(f"lever freed memory kept, {case.name}", kept, "ratio"),
        row(f"plain with all levers / ours, {case.name}", ours, "ratio"),
    ]


def gpu_rows(case: Case) -> list[Row]:
    """Compares bf16, channels-last and compiled with the plain step; not measured without a GPU."""
    name = f"speed, bf16 and compiled / as released, GPU, {case.name}"
    if not torch.cuda.is_available():
        return [row(name, None, "ratio", least=2.5)]
    steps, best = CaseSteps(case, "cuda"), ATTACKS["best"]
    works = {
        "released": steps.plain(Levers()),
        "eager": steps.ours(best, dtype=torch.bfloat16),
        "compiled": steps.ours(best, dtype=torch.bfloat16, compiled=True),
        "clean": steps.ours(None, dtype=torch.bfloat16, compiled=True),
    }
    times = side_by_side(works, rounds=case.rounds, warmup=3)
    return [
        row(name, times.ratio("released", "compiled"), "ratio", least=2.5),
        row(f"lever torch.compile, GPU, {case.name}", times.ratio("eager", "compiled"), "ratio"),
        row(f"time, best iterate / clean, GPU, {case.name}", times.ratio("compiled", "clean"), "ratio"),
        speed_row(f"best, GPU, {case.name}", times, "compiled", case),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a batch of four, once: whether it runs, not how fast")
    parser.add_argument("--eager", action="store_true", help="leave torch.compile out on the CPU")
    parser.add_argument("--only", choices=("flops", "small", "large", "gpu"), help="one part alone")
    options = parser.parse_args()
    small, large = (TINY, None) if options.quick else (SMALL, LARGE)
    compiles = not (options.eager or options.quick) and shutil.which("g++") is not None
    parts: dict[str, Callable[[], list[Row]]] = {
        "flops": flop_rows,
        "small": lambda: step_rows(small, compile_too=compiles, levers_too=True),
        "large": lambda: step_rows(large, compile_too=compiles, levers_too=False) if large else [],
        "gpu": lambda: gpu_rows(TINY if options.quick else ON_GPU),
    }
    chosen = [options.only] if options.only else list(parts)
    show([one for part in chosen for one in parts[part]()], as_json=options.json)


if __name__ == "__main__":
    main()
