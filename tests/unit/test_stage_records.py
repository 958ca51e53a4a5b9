"""Records that stages leave for others: the history and the gallery are read back, and other forms are refused."""

import pytest

from components.errors import UserError
from components.stage_records import history_entries, read_gallery
from tests.result_documents import gallery_document


def test_history_of_a_stage_without_one_is_empty():
    assert history_entries(None) == []
    assert history_entries([{"epoch": 1}]) == [{"epoch": 1}]


def test_gallery_is_read_back_with_its_threat():
    (entry,) = read_gallery([gallery_document(norm="Linf", eps=4 / 255)], where="evaluate")
    assert (entry.label, entry.threat, entry.clean) == ("seven", "Linf 4/255", "000-clean.png")
    assert read_gallery(None, where="evaluate") == []


@pytest.mark.parametrize("change", [{"label": 7}, {"colour": "red"}, {"distance": float("inf")}])
def test_gallery_of_another_form_is_refused_with_the_stage_to_run_again(change):
    with pytest.raises(UserError, match="--again evaluate"):
        read_gallery([gallery_document(**change)], where="evaluate")
