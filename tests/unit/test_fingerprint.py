"""Fingerprints: equal for equal work, different for anything that changes a result."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from components.fingerprint import NO_FINGERPRINT, WHEN_SET, canonical_json, fingerprint, fingerprinted
from pipeline.plan import fingerprints
from pipeline.recipe import build
from tests.recipes import small

SIMPLE = {
    "kind": "pretrain",
    "version": 1,
    "config": {"lr": 0.1},
    "parents": {"data": "ab"},
    "data_digest": "",
    "seed": 0,
}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "convstem"},
        {"version": 2},
        {"config": {"lr": 0.2}},
        {"parents": {"data": "cd"}},
        {"parents": {"init": "ab"}},
        {"data_digest": "x"},
        {"seed": 1},
    ],
)
def test_everything_that_counts_changes_it(change):
    assert fingerprint(**{**SIMPLE, **change}) != fingerprint(**SIMPLE)


def test_known_value():
    """Golden: a change here means that every finished run of every user is done again; raise FORMAT knowingly."""
    assert fingerprint(**SIMPLE) == "0e5042bda6461b21aefda6f61c1516b32d56b0624160e986eec3429697247168"


@given(
    st.dictionaries(
        st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text() | st.booleans()
    )
)
def test_order_of_keys_does_not_matter(value):
    assert canonical_json(value) == canonical_json(dict(reversed(list(value.items()))))


@pytest.mark.parametrize("value", [{"a": math.nan}, [math.inf], {1: "a"}, {"a": {2: 1}}])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(ValueError):
        canonical_json(value)


def test_fields_without_influence_are_left_out():
    config = build(small()).stages["pretrain"].config
    kept = fingerprinted(config)
    assert "epochs" in kept
    assert not {"num_workers", "loader", "num_threads"} & set(kept)
    assert "data" not in fingerprinted(config, without=frozenset({"data"}))


class Inner(BaseModel):
    kept: int = 1
    log_interval: int = Field(10, json_schema_extra=NO_FINGERPRINT)
    added_later: int = Field(0, json_schema_extra=WHEN_SET)


class Outer(BaseModel):
    one: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)
    named: dict[str, Inner] = {"a": Inner()}


@pytest.mark.parametrize("place", ["one", "several", "named"])
def test_fields_are_left_out_at_any_depth(place):
    def outer(**changes):
        inner = Inner(**changes)
        return Outer(**{place: {"one": inner, "several": (inner,), "named": {"a": inner}}[place]})

    kept = {"kept": 1}
    assert fingerprinted(Outer()) == {"one": kept, "several": [kept], "named": {"a": kept}}
    assert fingerprinted(outer(log_interval=20)) == fingerprinted(Outer())
    assert fingerprinted(outer(kept=2)) != fingerprinted(Outer())
    assert fingerprinted(outer(added_later=3)) != fingerprinted(Outer())


def prints(tmp_path, **stages):
    return fingerprints(build(small(**stages)), tmp_path)


def test_only_dependent_stages_change(tmp_path):
    base = prints(tmp_path)
    changed = prints(tmp_path, adversarial={"epochs": 3})
    assert {name for name in base if base[name] != changed[name]} == {"adversarial", "evaluate"}
    assert prints(tmp_path, pretrain={"num_workers": 2}) == base
    everything = prints(tmp_path, digits={"max_short_side": 28})
    assert all(base[name] != everything[name] for name in base)


def test_renaming_a_stage_does_not_change_its_work(tmp_path):
    document = small()
    document["stages"]["clean"] = {**document["stages"].pop("pretrain"), "kind": "pretrain"}
    document["stages"]["adversarial"]["init"] = "clean"
    assert fingerprints(build(document), tmp_path)["adversarial"] == prints(tmp_path)["adversarial"]
