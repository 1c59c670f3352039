"""Who stands, and what an earlier run left: the bookkeeping of an evaluation, without a model."""

import numpy as np

from robust_vit.evaluation.autoattack.ledger import CLEAN, Entry, Ledger
from robust_vit.evaluation.autoattack.session import Session
from robust_vit.evaluation.autoattack.standings import Standings
from robust_vit.evaluation.points import Points

HEADER = {"weights": "a", "program": "b", "data": "c", "packages": {}, "config": {}, "order": ["pgd"]}


def image(value):
    return np.full((2, 2, 1), value, np.float32)


def test_the_first_attack_and_its_lowest_item_keep_a_point():
    standings = Standings(np.array(["robust", "robust", "misclassified", "robust"], object))
    standings.broke(0, "apgd", 4, image(0.4))
    standings.broke(0, "apgd", 2, image(0.2))  # an earlier item that ended later
    standings.broke(0, "apgd", 3, image(0.3))
    standings.broke(0, "square", 0, image(0.9))
    assert standings.robust() == [1, 3] and standings.broken == 1
    assert standings.broken_by() == ["apgd", "", "", ""]
    points = Points(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, int), np.ones(4, np.float32), np.arange(4))
    np.testing.assert_array_equal(standings.adversarial(points)[:, 0, 0, 0], np.float32([0.2, 0, 0, 0]))


def test_suspects_are_void_only_where_nothing_broke_them():
    standings = Standings(np.array(["robust", "robust"], object))
    standings.suspect |= {0, 1}
    standings.broke(1, "apgd", 0, image(0.5))
    assert standings.void_suspects() == 1
    assert list(standings.status) == ["non-finite logits", "broken"]


def test_a_session_takes_up_what_an_earlier_one_left(tmp_path):
    first = Session(Ledger(tmp_path, HEADER), batch_size=100)
    first.note_clean([10, 11, 12], ["robust", "robust", "misclassified"])
    first.note(Entry(10, "pgd", 0, 0, -1, "survived", 5), None)
    first.note(Entry(10, "pgd", 1, 1, -1, "broken", 2), image(0.5))
    first.note(Entry(11, "pgd", 0, 0, -1, "non-finite logits", 3), None)
    first.note(Entry(11, "pgd", 1, 1, -1, "outside the ball", 3, "bfloat16"), None)
    first.flush()
    second = Session(Ledger(tmp_path, HEADER), batch_size=100)
    second.note_clean([10, 11, 12], ["robust", "robust", "misclassified"])  # known: not written again
    assert second.resumed == 7 and sum(e.attack == CLEAN for e in Ledger(tmp_path, HEADER).entries) == 3
    low = second.replay("pgd", {10: 0, 11: 1}, "bfloat16")
    assert low.known == {(0, 0): False, (0, 1): True, (1, 0): False, (1, 1): False} and low.suspect == {1}
    assert [(row, item) for row, item, _ in low.claims] == [(0, 1)]
    assert (1, 1) not in second.replay("pgd", {11: 1}, "float32").known  # refused in bfloat16, open in float32
    assert second.unsettled("pgd") == {11} and second.replay("apgd", {10: 0}, "float32").known == {}


def test_a_full_batch_is_written_and_nothing_is_kept_without_a_ledger(tmp_path):
    session = Session(Ledger(tmp_path, HEADER), batch_size=2)
    for index in range(3):
        session.note(Entry(index, "pgd", 0, 0, -1, "survived", 5), None)
    assert len(Ledger(tmp_path, HEADER).entries) == 2
    free = Session(None, batch_size=2)
    free.note_clean([1], ["robust"])
    free.note(Entry(1, "pgd", 0, 0, -1, "survived", 5), None)
    assert len(free.entries) == 1 and free.resumed == 0
