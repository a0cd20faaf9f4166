"""When an answer counts as right."""

import pytest

from gpu_runner.rows import Row, Turn
from gpu_runner.training import scoring
from gpu_runner.training.scoring import Labels
from jobs.results import Answer


def row(*labels: str, answer: str = "red") -> Row:
    return Row(id="r", conversations=(Turn("human", "What?"), Turn("gpt", answer)), labels=labels)


LABELS = Labels([row("car"), row("sports car", "dog")])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a Sports Car", {"sports car"}),
        ("two cars and a dog.", {"car", "dog"}),
        ("a carpet", set()),
        ("", set()),
    ],
)
def test_labels_are_found_as_whole_words_longest_first(text: str, found: set[str]) -> None:
    assert LABELS.mentioned(text) == found


def test_an_answer_is_right_when_it_mentions_the_labels_and_no_others() -> None:
    assert LABELS.is_correct(row("car", "dog"), "a dog beside a car")
    assert not LABELS.is_correct(row("car"), "a dog beside a car")
    assert not LABELS.is_correct(row("car", "dog"), "a car")


def test_rows_without_labels_are_judged_by_their_text() -> None:
    unlabelled = Labels([row()])
    assert unlabelled.is_correct(row(answer="forty two"), "forty  two ")
    assert not unlabelled.is_correct(row(answer="forty two"), "forty")


def test_objects_without_a_name_do_not_count() -> None:
    labels = Labels([row("", "car"), row()])
    assert labels.known == {"car"}
    assert labels.is_correct(row(""), "none")


def test_the_best_constant_answer_is_the_most_frequent_set_of_labels() -> None:
    assert scoring.constant_accuracy([row("a"), row("a"), row("b"), row("a", "b")]) == 0.5
    assert scoring.constant_accuracy([row(), row()]) is None


def test_the_keys_of_an_answer_in_json_are_no_labels() -> None:
    things = Labels([row("box"), row("point"), row("cat")])
    assert things.mentioned('[{"label":"cat","box":[1,2,3,4]},{"label": "box", "point" : [1,2]}]') == {"cat", "box"}
    assert things.mentioned('[{"label":"cat","box":[1,2') == {"cat"}


def answer(expected: str, predicted: str, correct: bool = False) -> Answer:
    return Answer(row_id="r", image=None, prompt="Where?", expected=expected, predicted=predicted, correct=correct)


CAT = '[{"label":"cat","box":[0,0,100,100]}]'


@pytest.mark.parametrize(
    ("predicted", "overlaps"),
    [
        (CAT, [1.0]),
        ('[{"label": "Cat", "box": [0, 0, 100, 50]}]', [0.5]),
        ('[{"label":"cat","box":[50,0,150,100]}]', [1 / 3]),
        ('[{"label":"cat","bbox_2d":[0,0,100,100]}]', [1.0]),
        ('{"label":"cat","box":[0,0,100,100]}', [1.0]),
        ('[{"label":"dog","box":[0,0,100,100]}]', [0.0]),
        ('[{"label":"cat","box":[100,100,0,0]}]', [0.0]),
        ('[{"label":"cat","box":[0,0,100]}]', [0.0]),
        ('[{"label":"cat","box":["a",0,100,100]}]', [0.0]),
        ("[]", [0.0]),
        ("a cat", [0.0]),
        ('[{"label":"cat","box":[0,0,100,100', [0.0]),
        ('[{"label":"cat","box":[0,0,100,100]},{"label":"cat","box":[0,0,100,100]}]', [1.0, 0.0]),
    ],
)
def test_a_box_is_worth_its_overlap_with_the_expected_one(predicted: str, overlaps: list[float]) -> None:
    assert scoring.box_overlaps(CAT, predicted) == pytest.approx(overlaps)


def test_each_box_has_one_partner_and_the_best_fitting_ones_come_first() -> None:
    expected = '[{"label":"cat","box":[0,0,10,10]},{"label":"cat","box":[0,0,10,20]}]'
    predicted = '[{"label":"cat","box":[0,0,10,20]},{"label":"cat","box":[0,0,10,9]}]'
    assert scoring.box_overlaps(expected, predicted) == pytest.approx([1.0, 0.9])


def test_boxes_where_none_are_expected_count_as_too_many() -> None:
    assert scoring.box_overlaps("[]", CAT) == [0.0]
    assert scoring.box_overlaps("[]", "[]") == []
    assert scoring.box_overlaps("a cat", CAT) == []
    assert scoring.box_overlaps('[{"label":"cat","point":[1,2]}]', CAT) == []


def test_answers_are_scored_by_what_their_rows_ask_for() -> None:
    scores = scoring.scores(
        [answer(CAT, CAT, correct=True), answer(CAT, "a cat"), answer("[]", "[ ]"), answer("no", "no")]
    )
    assert scores == (1 / 4, 2 / 4, 2 / 3, 1 / 2, 1 / 2)
    assert scoring.scores([answer("red", "[]", correct=False)]) == (0.0, 0.0, None, None, None)
    assert scoring.scores([]) == (None,) * 5
