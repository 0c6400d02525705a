"""Metrics by hand; the official scripts' edge cases; SQuAD's answers from logits."""

import numpy as np
import pytest

from sctd_jax.errors import DivergedError
from sctd_jax.tasks import scoring, squad, superglue
from sctd_jax.tasks.examples import Answer, Example
from sctd_jax.tasks.metrics import METRICS
from sctd_jax.tasks.table import TASKS


def of(name, labels, predictions):
    return METRICS[name](np.array(labels), np.array(predictions))


# --- one prediction for each example ---


def test_every_metric_of_the_table_is_here_or_known_to_need_more_than_labels():
    elsewhere = {"accuracy_mm", "f1a", "em", "precision", "recall", "strict_f1"}
    named = {name for task in TASKS.values() for name in task.metrics}
    assert named - elsewhere == set(METRICS)


def test_classification_by_hand():
    labels, predictions = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]  # 2 true and 1 false of each class
    assert of("accuracy", labels, predictions) == pytest.approx(4 / 6)
    assert of("f1", labels, predictions) == pytest.approx(2 / 3)
    assert of("mcc", labels, predictions) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert of("mcc", labels, [1 - p for p in predictions]) == pytest.approx(-1 / 3)


def test_f1_is_of_class_one():
    assert of("f1", [1, 0, 0, 0], [1, 1, 0, 0]) == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_macro_f1_weighs_classes_equally():
    """F1 of class 0: 4/5 (precision 1, recall 2/3); of 1: 2/3; of 2, never predicted, and 3, never right: 0."""
    assert of("macro_f1", [0, 0, 0, 1, 2], [0, 0, 1, 1, 3]) == pytest.approx((4 / 5 + 2 / 3 + 0 + 0) / 4)
    assert of("macro_f1", [0, 0, 0, 1], [0, 0, 1, 1]) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_correlations_by_hand():
    """Deviations (-1.5, -0.5, 0.5, 1.5) and (-2, -1, 3, 0); ranks 0 1 2 3 and 0 1 3 2."""
    labels, predictions = [1, 2, 3, 4], [1, 2, 6, 3]
    assert of("pearson", labels, predictions) == pytest.approx((3 + 0.5 + 1.5 + 0) / np.sqrt(5 * 14))
    assert of("spearman", labels, predictions) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert of("spearman", labels, [1, 10, 100, 1000]) == pytest.approx(1)
    assert of("pearson", labels, [1, 10, 100, 1000]) < 0.9


@pytest.mark.parametrize(
    ("name", "labels", "predictions"),
    [
        ("f1", [0, 0], [0, 0]),
        ("f1", [1, 1], [0, 0]),
        ("macro_f1", [0, 0], [1, 1]),
        ("mcc", [0, 1], [1, 1]),
        ("mcc", [1, 1], [1, 1]),
        ("mcc", [0, 0], [0, 1]),
        ("pearson", [1.0, 2.0], [0.3, 0.3]),
        ("pearson", [2.0, 2.0], [0.3, 0.4]),
        ("pearson", [1.0, 2.0, 3.0], [1e6, 1e6 + 1e-7, 1e6]),
        ("pearson", [1.0], [2.0]),
        ("spearman", [1.0, 2.0], [0.0, 0.0]),
        ("spearman", [1.0], [2.0]),
    ],
)
def test_what_is_not_defined_is_zero_without_a_warning(name, labels, predictions):
    assert of(name, labels, predictions) == 0.0


def test_constant_predictions_of_one_class_keep_the_f1_that_they_have():
    assert of("f1", [0, 1], [1, 1]) == pytest.approx(2 / 3)


def test_nearly_equal_float32_predictions_are_not_constant():
    predictions = np.float32(2.5) + np.array([0, 1, 2], np.float32) * np.spacing(np.float32(2.5))
    assert METRICS["pearson"](np.array([1.0, 2.0, 3.0]), predictions) == pytest.approx(1)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_predictions_that_are_no_numbers_are_not_hidden(name):
    assert np.isnan(of(name, [1.0, 2.0, 3.0], [1.0, np.nan, 2.0]))


@pytest.mark.parametrize("name", ["rte", "stsb", "copa", "record", "squad1"])
def test_outputs_that_are_not_finite_are_no_predictions(name):
    logits = [np.zeros(2), np.array([1, np.inf])]
    if name == "squad1":
        spans, best = np.zeros((3, 2), np.int32), np.ones(3, bool)
        logits = [[squad.Window(np.zeros(3), np.full(3, value), spans, best)] for value in (0, np.nan)]
    with pytest.raises(DivergedError, match="1 of 2 outputs of the network are not finite"):
        scoring.predict(TASKS[name], (), logits)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_python_floats(name):
    value = METRICS[name](np.array([0, 1, 1], np.float32), np.array([0, 1, 0], np.int32))
    assert type(value) is float


def test_many_classes_of_few_rows_do_not_warn():
    labels = list(range(40))
    assert of("accuracy", labels, labels[::-1]) == 0.0
    assert of("macro_f1", labels, labels) == 1.0


# --- MultiRC and ReCoRD ---


def multirc(groups, labels, predictions):
    examples = [Example(0, "text", group=group, label=label) for group, label in zip(groups, labels, strict=True)]
    return superglue.measure_multirc(examples, predictions, ())


def test_multirc():
    """All options have 2 right positives, 1 false, 1 missed; "b" alone of 3 questions is wholly right."""
    groups = ["a", "a", "b", "b", "c", "a"]
    labels, predictions = [1, 0, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0]
    found = multirc(groups, labels, predictions)
    assert found == {"f1a": pytest.approx(2 / 3), "em": pytest.approx(1 / 3)}
    assert found["f1a"] == of("f1", labels, predictions)
    assert multirc(groups, [0] * 6, [0] * 6) == {"f1a": of("f1", [0] * 6, [0] * 6), "em": 1.0}


def test_multirc_of_a_question_whose_rows_are_apart():
    """A wrong option counts wherever it stands among its question's rows."""
    for wrong in range(3):
        predictions = np.array([1, 1, 1])
        predictions[wrong] = 0
        assert multirc(["a", "a", "a"], [1, 1, 1], predictions)["em"] == 0.0


def record(answers, predictions):
    """The queries of `answers`, each with its prediction as the likelier of two entities."""
    rows = [
        Example(0, "text", group=query, candidate=text, answers=tuple(map(Answer, answers[query])))
        for query in answers
        for text in ("other", predictions[query])
    ]
    return superglue.measure_record(rows, [0.1, 0.2] * len(answers), ())


def test_record_takes_the_best_answer_of_each_query():
    """ "The Beatles" is one of two answers; of "New York City" two of three words, and one of one."""
    answers = {"1": ["John Lennon", "Beatles"], "2": ["New York City"], "3": ["Paul"]}
    predictions = {"1": "The Beatles!", "2": "new york", "3": "Ringo"}
    assert record(answers, predictions) == {"em": pytest.approx(1 / 3), "f1": pytest.approx((1 + 0.8 + 0) / 3)}


def test_record_of_an_answer_that_normalises_to_nothing():
    assert record({"1": ["The The"]}, {"1": "the the"}) == {"em": 1, "f1": 0}


def test_best_candidates():
    pairs = zip(["q", "r", "q", "r", "q"], ["A", "B", "C", "D", "E"], strict=True)
    rows = [Example(0, "text", group=query, candidate=entity) for query, entity in pairs]
    assert superglue.best_candidates(rows, np.array([0.1, 0.9, 0.7, 0.2, 0.7])) == {"q": "C", "r": "B"}


# --- SQuAD's metrics ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tand A dog!", "cat and dog"),
        ("an apple a day", "apple day"),
        ("Theatre than another", "theatre than another"),  # articles are whole words
        ("the-cat", "thecat"),  # punctuation goes first, and joins
        ("U.S.A.", "usa"),
        ("a.", ""),
        ("“Ärger” – 5€", "“ärger” – 5€"),  # only ASCII punctuation
        ("the\u00a0Straße", "straße"),  # white space and words as Unicode has them
        ("thé", "thé"),
        ("$3.5 million", "35 million"),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert squad.normalize(text) == expected


def test_exact_match():
    assert squad.exact_match("the Denver Broncos", "Denver Broncos.")
    assert not squad.exact_match("Denver", "Denver Broncos")
    assert squad.exact_match("The", "a")  # nothing is left of either
    assert not squad.exact_match("cafe", "café")


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("the cat sat", "cat sat down", 2 * 2 / (2 + 3)),
        ("dog dog cat", "dog cat cat", 4 / 6),  # a repeated word counts as often as both have it
        ("dog dog cat", "dog dog bird", 4 / 6),
        ("dog", "dog dog dog", 2 / 4),
        ("bird", "cat", 0),
        ("", "cat", 0),
        ("the", "a", 0),
        ("CAT", "cat", 1),
    ],
)
def test_token_f1(prediction, answer, expected):
    assert squad.f1(prediction, answer) == pytest.approx(expected)
    assert squad.f1(answer, prediction) == pytest.approx(expected)


@pytest.mark.parametrize("null_answer", [False, True])
def test_evaluate_takes_the_best_answer_of_each_question(null_answer):
    """Either answer is two of the three words "in 1066 AD"; a question without a prediction counts 0."""
    answers = {"1": ["Denver", "the Denver Broncos"], "2": ["in 1066", "1066 AD"], "3": ["x"], "4": ["y"]}
    predictions = {"1": "Denver Broncos", "2": "in 1066 AD", "3": "z", "other": "w"}
    found = squad.evaluate(answers, predictions, null_answer=null_answer)
    assert found == {"em": pytest.approx(1 / 4), "f1": pytest.approx((1 + 0.8) / 4)}


@pytest.mark.parametrize(
    ("accepted", "prediction", "em", "f1"),
    [
        ([], "", 1, 1),
        ([], "cat", 0, 0),
        ([], "the", 1, 1),  # as the script has it: nothing is left of it
        (["cat"], "", 0, 0),
        (["A"], "A", 1, 1),  # no answer is left, so that nothing is right
        (["A"], "", 1, 1),
        (["A"], "cat", 0, 0),
        (["A", "cat"], "a", 0, 0),
        (["A", "cat"], "a cat", 1, 1),
    ],
)
def test_evaluate_as_version_2(accepted, prediction, em, f1):
    assert squad.evaluate({"1": accepted}, {"1": prediction}, null_answer=True) == {"em": em, "f1": f1}


@pytest.mark.parametrize(
    ("accepted", "prediction", "em", "f1"),
    [(["A"], "A", 1, 0), (["A", "cat"], "a", 1, 0), (["A", "cat"], "cat", 1, 1), (["cat"], "", 0, 0)],
)
def test_evaluate_as_version_1(accepted, prediction, em, f1):
    assert squad.evaluate({"1": accepted}, {"1": prediction}, null_answer=False) == {"em": em, "f1": f1}


# --- SQuAD's answers from logits ---

# [CLS] q [SEP] The quick brown fox . [SEP]; the tokens of the passage are 3 .. 7.
PASSAGE = "The  quick brown fox."
SPANS = [(-1, -1)] * 3 + [(0, 3), (5, 10), (11, 16), (17, 20), (20, 21)] + [(-1, -1)]


def window(start, end, best=range(3, 8), spans=SPANS):
    """Logits by token; those that are not named are -10."""
    logits = np.full((2, len(spans)), -10, np.float32)
    for row, values in zip(logits, (start, end), strict=True):
        for token, value in values.items():
            row[token] = value
    context = np.isin(np.arange(len(spans)), list(best))
    return squad.Window(*logits, np.array(spans, np.int32), context)


def answer(*windows, null_answer=False, **settings):
    return squad.extract(windows, PASSAGE, null_answer=null_answer, **settings)


def test_the_answer_is_the_passages_own_text():
    assert answer(window({3: 5}, {4: 5})) == ("The  quick", 0.0)
    assert answer(window({6: 5}, {7: 5})) == ("fox.", 0.0)
    assert answer(window({5: 5}, {5: 5})) == ("brown", 0.0)


def test_text_of_several_bytes_is_counted_in_characters():
    spans = np.array([(-1, -1), (0, 6), (7, 9)], np.int32)
    logits = np.array([0, 1, 2], np.float32)
    found = squad.extract([squad.Window(logits, logits, spans, spans[:, 0] >= 0)], "Straße 𝔸é", null_answer=False)
    assert found == ("𝔸é", 0.0)


def test_an_answer_begins_and_ends_in_the_passage_and_in_order():
    """The highest logits are of the question, [SEP] and an end before the start."""
    assert answer(window({1: 9, 6: 8, 4: 3}, {8: 9, 4: 8, 5: 2}))[0] == "quick"  # 3 + 8
    assert answer(window({6: 8, 4: 3}, {5: 6, 7: 0}))[0] == "quick brown"  # 3 + 6 against 8 + 0
    assert answer(window({6: 8, 4: 3}, {5: 4, 7: 0}))[0] == "fox."


def test_the_length_of_an_answer_is_limited():
    logits = window({3: 5, 5: 1}, {6: 5})
    assert answer(logits, max_answer_tokens=4)[0] == "The  quick brown fox"
    assert answer(logits, max_answer_tokens=3)[0] == "brown fox"


def test_only_the_best_starts_and_ends_are_tried():
    """Starts 6 and 5, ends 4 and 3: no span is possible, though (5, 6) would be. Then 7 + 9 against 9 + 6."""
    logits = window({6: 9, 5: 8, 3: 7}, {4: 9, 3: 8, 6: 6})
    assert answer(logits, n_best=2) == ("", 0.0)
    assert answer(logits, n_best=3)[0] == "The  quick"


def test_the_earlier_start_in_rank_wins_a_tie():
    assert answer(window({4: 5, 6: 3}, {4: 1, 6: 3}))[0] == "quick brown fox"  # 8 against 6
    assert answer(window({5: 4, 6: 4}, {6: 2}))[0] == "brown fox"
    assert answer(window({3: 2, 4: 3}, {4: 5, 3: 6}))[0] == "quick"  # 3 + 5 of the first start, 2 + 6 of the second


def test_an_answer_begins_where_its_window_is_best_and_may_end_outside():
    """The same token scores more in a window that has less context of it."""
    first, second = window({4: 9, 5: 2}, {6: 5}, best=(3, 5)), window({4: 4}, {6: 5}, best=(4, 6))
    assert answer(first)[0] == "brown fox"
    assert answer(first, second)[0] == "quick brown fox"
    assert answer(first, window({4: 1}, {6: 5}, best=(4, 6)))[0] == "brown fox"


def test_the_first_window_wins_a_tie():
    first, second = window({4: 5}, {4: 5}), window({5: 5}, {5: 5})
    assert answer(first, second)[0] == "quick"
    assert answer(second, first)[0] == "brown"


def test_no_answer_wins_only_by_more_than_the_answer():
    """[CLS] scores 1 + 3; a span 5 + end."""
    assert answer(window({0: 1, 4: 5}, {0: 3, 4: -2}), null_answer=True) == ("", 1.0)
    assert answer(window({0: 1, 4: 5}, {0: 3, 4: -1}), null_answer=True) == ("quick", 0.0)
    assert answer(window({0: 1, 4: 5}, {0: 3, 4: 1}), null_answer=True) == ("quick", -2.0)
    assert answer(window({0: 1, 4: 5}, {0: 3, 4: -2}), null_answer=False) == ("quick", 0.0)


def test_no_answer_scores_what_the_most_certain_window_says():
    sure, unsure = window({0: 9, 4: 1}, {0: 9, 4: 1}), window({0: 1, 4: 1}, {0: 2, 4: 1})
    assert answer(sure, null_answer=True) == ("", 16.0)
    assert answer(sure, unsure, null_answer=True) == ("", 1.0)
    assert answer(sure, window({0: 1, 4: 1}, {0: 0, 4: 1}), null_answer=True) == ("quick", -1.0)


def test_without_a_possible_span_the_answer_is_empty():
    nowhere = window({0: 1, 4: 5}, {0: 3, 4: 5}, best=())
    assert answer(nowhere) == ("", 0.0)
    assert answer(nowhere, null_answer=True) == ("", 4.0)
    assert answer(nowhere, window({0: 1, 5: 5}, {0: 3, 5: 5}), null_answer=True) == ("brown", -6.0)


def test_a_token_without_characters_does_not_begin_an_answer():
    spans = [*SPANS[:3], (0, 0), *SPANS[4:]]
    assert answer(window({3: 9, 4: 1}, {3: 9, 4: 8}, spans=spans))[0] == "quick"


# --- max context ---


def test_max_context():
    """Windows 0-4, 2-6 and 4-8 of 9 tokens: contexts 01210, 01210 and 01210 of equal length."""
    first, second, third = squad.max_context([0, 2, 4], [5, 5, 5])
    assert first.tolist() == [True, True, True, True, False]  # token 3: 1 in both, the first wins
    assert second.tolist() == [False, False, True, True, False]  # token 4: 2; token 5: 1 in both
    assert third.tolist() == [False, False, True, True, True]


def test_max_context_of_a_token_at_two_edges_is_the_longer_window():
    """Token 3 has 0 on one side in both; length decides by 0.04 against 0.06, and not where contexts differ."""
    short, long = squad.max_context([0, 3], [4, 6])
    assert short.tolist() == [True, True, True, False]
    assert long.tolist() == [True] * 6
    short, long = squad.max_context([0, 1], [3, 9])
    assert short.tolist() == [True, True, False]  # token 1: 1.03 against 0.09; token 2: 0.03 against 1.09
    assert long.tolist() == [False] + [True] * 8


def test_every_token_is_best_in_one_window():
    starts, lengths = [0, 128, 256, 384], [300, 300, 300, 256]
    count = np.zeros(640, int)
    for start, length, best in zip(starts, lengths, squad.max_context(starts, lengths), strict=True):
        count[start : start + length] += best
    assert (count == 1).all()
