"""A finished run as the report reads it: two stems trained clean and under attack, evaluated, swept, with a gallery."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.report.data import ReportStage
from components.result_rows import Conditions, ResultRow, WorstCaseRow
from components.stage_records import GalleryEntry
from components.statistics import wilson
from tests.result_documents import CONDITIONS, gallery_document, row_document

WRITTEN = datetime(2025, 3, 14, 15, 9, tzinfo=UTC)


def row(name: str, kind: str, stem: str, norm: str, eps: float, robust: int, **more: Any) -> ResultRow:
    n, standard = more.pop("n", 100), norm == "Linf" and eps == 0.15
    document = row_document(
        details={"attack_version": "standard" if standard else "parts of standard"},
        kind=kind,
        stage=name,
        model="convnext_micro",
        stem=stem,
        dataset="digits",
        resolution=32,
        norm=norm,
        eps=eps,
        attack="AutoAttack" if standard else "APGD-CE+APGD-T",
        n=n,
        clean_accuracy=0.95,
        robust_accuracy=robust / n,
        interval=wilson(robust, n),
    )
    return ResultRow.model_validate(document | more)


def conditions(**more: Any) -> Conditions:
    return Conditions.model_validate({**CONDITIONS, "dataset": "digits", "classes": 10, "resolutions": [32], **more})


def png(side: int, shade: Callable[[int, int], tuple[int, int, int]]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(v for x in range(side) for v in shade(x, y)) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def evaluated(name: str, kind: str, stem: str, clean: float, robust: list[int]) -> ReportStage:
    threats = [("Linf", 0.05), ("Linf", 0.15), ("Linf", 0.2), ("L2", 1.0), ("L1", 10.0)]
    rows = [
        row(name, kind, stem, norm, eps, right, clean_accuracy=clean)
        for (norm, eps), right in zip(threats, robust, strict=True)
    ]
    survivors = min(robust[1], robust[3], robust[4]) - (2 if robust[1] > 2 else 0)
    worst_threats = [("Linf", 0.15, "AutoAttack"), ("L2", 1.0, "APGD-CE+APGD-T"), ("L1", 10.0, "APGD-CE+APGD-T")]
    worst = WorstCaseRow(
        kind=kind,
        stage=name,
        model="convnext_micro",
        stem=stem,
        dataset="digits",
        resolution=32,
        norms=("Linf", "L2", "L1"),
        threats=[{"norm": norm, "eps": eps, "attack": attack} for norm, eps, attack in worst_threats],
        attack="AutoAttack / APGD-CE+APGD-T",
        n=100,
        clean_accuracy=clean,
        robust_accuracy=survivors / 100,
        interval=wilson(survivors, 100),
    )
    return ReportStage(
        name=f"evaluate-{name}",
        kind="evaluate",
        run_id="run" + name * 3,
        fingerprint=(name.encode().hex() * 9)[:64],
        state="ran",
        config={"model": name, "n": 100},
        result={"robust_accuracy": robust[1] / 100},
        rows=rows,
        worst_cases=[worst],
        conditions=conditions(model_sha256=(name.encode().hex() * 9)[:64]),
    )


def trained(name: str, kind: str, stem: str, epochs: int, robust: float | None, clean: float) -> ReportStage:
    history = []
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-3.2 * epoch / epochs)
        entry: dict[str, Any] = {"epoch": epoch, "loss": 2.3 - (2.3 - 0.4) * rise + 0.04 * math.sin(7 * epoch)}
        entry["clean_accuracy"] = 0.1 + (clean - 0.1) * rise
        if robust is not None:
            entry["robust_accuracy"] = 0.1 + (robust - 0.1) * rise
        history.append(entry | {"lr": 1e-3 * (1 - epoch / epochs), "images_per_s": 2100.0})
    return ReportStage(
        name=name,
        kind=kind,
        run_id=(name * 8)[:32],
        fingerprint=(name.encode().hex() * 9)[:64],
        state="reused" if kind in {"pretrain", "convstem"} else "ran",
        config={
            "data": "encode",
            "epochs": epochs,
            "attack": None if robust is None else {"norm": "Linf", "eps": 0.15},
        },
        result={"model": "convnext_micro", "stem": stem, "epochs": epochs, "clean_accuracy": clean},
        history=history,
    )


def gallery(folder: Path) -> list[GalleryEntry]:
    samples = []
    for i in range(6):

        def clean(x: int, y: int, i: int = i) -> tuple[int, int, int]:
            ink = 235 if (x - 16) ** 2 + (y - 16) ** 2 in range(60 + 9 * i, 130 + 9 * i) else 25
            return ink, ink, ink

        def moved(x: int, y: int, i: int = i) -> tuple[int, int, int]:
            sign = 38 if (x * 7 + y * 13 + i * 5) % 11 < 5 else -25
            red, green, blue = clean(x, y)
            return max(0, min(255, red + sign)), max(0, min(255, green - sign)), max(0, min(255, blue + sign))

        def difference(x: int, y: int, i: int = i) -> tuple[int, int, int]:
            return (230, 60, 90) if (x * 7 + y * 13 + i * 5) % 11 < 5 else (80, 130, 240)

        paths = {}
        for title, shade in (("clean", clean), ("adversarial", moved), ("difference", difference)):
            path = folder / f"{i}-{title}.png"
            path.write_bytes(png(32, shade))
            paths[title] = str(path)
        other = i if i % 3 else (i + 3) % 10
        seen = {"label": str(i), "clean_prediction": str(i), "adversarial_prediction": str(other)}
        samples.append(GalleryEntry.model_validate(gallery_document(index=i, **seen, **paths)))
    return samples


@pytest.fixture
def recipe() -> dict[str, Any]:
    return {
        "name": "quickstart",
        "description": "The paper's recipe on the scanned digits: small models, short schedules, real attacks.",
        "seed": 0,
        "stages": {"adversarial": {"epochs": 20, "attack": {"norm": "Linf", "eps": 0.15, "steps": 2}}},
    }


@pytest.fixture
def stages(tmp_path: Path) -> list[ReportStage]:
    return sample(tmp_path)


def sample(folder: Path) -> list[ReportStage]:
    encode = ReportStage(
        name="encode",
        kind="encode",
        run_id="e" * 32,
        fingerprint="0123456789abcdef" * 4,
        state="reused",
        config={"source": "digits", "max_short_side": 32},
        result={"dataset": "digits", "classes": 10, "train": 1437, "val": 360},
    )
    adversarial = evaluated("adversarial", "adversarial", "conv", 0.95, [89, 68, 51, 74, 61])
    adversarial = ReportStage(**{**vars(adversarial), "gallery": gallery(folder)})
    sweep_rows = [
        row("adversarial", "adversarial", "conv", "Linf", 0.15, right, resolution=size, clean_accuracy=clean)
        for size, right, clean in ((24, 41, 0.86), (32, 68, 0.95), (40, 66, 0.94), (48, 57, 0.9))
    ]
    return [
        encode,
        trained("pretrain", "pretrain", "patch", 10, None, 0.975),
        trained("convstem", "convstem", "conv", 10, None, 0.981),
        trained("adversarial", "adversarial", "conv", 20, 0.7, 0.95),
        trained("adversarial-patch", "adversarial", "patch", 20, 0.62, 0.94),
        trained("radius", "radius", "conv", 10, 0.58, 0.92),
        evaluated("pretrain", "pretrain", "patch", 0.975, [21, 0, 0, 4, 8]),
        adversarial,
        evaluated("adversarial-patch", "adversarial", "patch", 0.94, [85, 60, 44, 58, 40]),
        evaluated("radius", "radius", "conv", 0.92, [84, 69, 60, 73, 62]),
        ReportStage(
            name="sweep",
            kind="sweep",
            run_id="s" * 32,
            fingerprint="f" * 64,
            state="ran",
            config={"model": "adversarial", "resolutions": [24, 32, 40, 48]},
            rows=sweep_rows,
            conditions=conditions(resolutions=[24, 32, 40, 48]),
        ),
    ]
