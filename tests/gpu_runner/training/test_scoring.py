"""When an answer counts as right."""

import pytest

from gpu_runner.rows import Row, Turn
from gpu_runner.training import scoring
from gpu_runner.training.scoring import Labels


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
