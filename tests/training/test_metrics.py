"""The metrics, against values computed by hand and those of the official tools."""

import math
import shutil
import warnings
from importlib.util import find_spec

import pytest
import sacrebleu

from training import coco
from training.metrics import bleu_e2e, bleu_webnlg, longest_common_subsequence, nist, rouge_l, split_webnlg, tokens_13a

ANSWERS = ["the cat is on the mat", "There is a big tree near the building on the street ."]
REFERENCES = [
    ["the cat sat on the mat", "a cat is on the mat"],
    ["A big tree stands near the building .", "There is a tree near a building on a street ."],
]


def test_bleu_of_one_sentence_is_what_the_formula_gives_by_hand() -> None:
    # as many words as the reference, so no penalty; only the first "the" has no counterpart
    answer, reference = "the cat is on the mat", "a cat is on the mat"
    expected = 100 * math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4)
    assert bleu_e2e([answer], [[reference]]).score == pytest.approx(expected)


def test_a_short_answer_pays_the_brevity_penalty() -> None:
    found = bleu_e2e(["the cat is on the"], [["the cat is on the mat"]]).score
    assert found == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_e2e_bleu_is_sacrebleus_with_the_official_settings_over_all_references() -> None:
    streams = [[texts[0] for texts in REFERENCES], [texts[1] for texts in REFERENCES]]
    expected = sacrebleu.corpus_bleu(ANSWERS, streams, lowercase=True, smooth_method="none", tokenize="13a")
    found = bleu_e2e(ANSWERS, REFERENCES)
    assert found.score == pytest.approx(expected.score)
    assert "case:lc|eff:no|tok:13a|smooth:none" in found.signature


def test_inputs_may_have_different_numbers_of_references() -> None:
    uneven = [REFERENCES[0], REFERENCES[1][1:]]
    assert bleu_e2e(ANSWERS, uneven).score > 0
    assert bleu_e2e(ANSWERS, REFERENCES).score >= bleu_e2e(ANSWERS, [texts[:1] for texts in REFERENCES]).score


def test_nothing_in_common_at_an_order_is_zero_not_smoothed() -> None:
    assert bleu_e2e(["a b c d"], [["d c b a"]]).score == 0.0


def test_webnlg_text_is_lowered_made_ascii_and_split_at_every_non_word_character() -> None:
    assert split_webnlg("Adolfo Suárez Madrid–Barajas, 25.0 m") == "adolfo suarez madrid - barajas , 25 . 0 m"


def test_webnlg_bleu_uses_three_references_and_ignores_case_and_accents() -> None:
    references = [["Café Adriatic is near by .", "x", "y", "something else entirely, a fourth one"]]
    assert bleu_webnlg(["cafe adriatic is near by."], references).score == pytest.approx(100)
    assert bleu_webnlg(["something else entirely, a fourth one"], references).score == 0


def test_webnlgs_signature_tells_what_was_done_before_sacrebleu() -> None:
    signature = bleu_webnlg(["a b c d"], [["A b c d", "x"]]).signature
    assert signature.startswith("nrefs:2|case:mixed|eff:no|tok:none|smooth:none|")
    assert signature.endswith("|text:lower,unidecode,split")


def test_rouge_l_takes_the_best_precision_and_the_best_recall() -> None:
    # "a b c" against "a x c y" (2 of 4) and "c" (1 of 1): precision 2/3, recall 1
    found = rouge_l([["a", "b", "c"]], [[["a", "x", "c", "y"], ["c"]]])
    assert found == pytest.approx((1 + 1.44) * (2 / 3) / (1 + 1.44 * 2 / 3))
    assert rouge_l([["a"], []], [[["a"]], [["b"]]]) == pytest.approx(0.5)


def test_the_longest_common_subsequence_keeps_the_order() -> None:
    assert longest_common_subsequence(list("abcbdab"), list("bdcaba")) == 4
    assert longest_common_subsequence([], list("ab")) == 0


def test_nist_of_a_perfect_answer_is_what_its_n_grams_tell() -> None:
    # "a a b": 1-grams a (2 of 3 words), a, b (1 of 3); 2-grams "a a" and "a b", each one of the two after an a;
    # the 3-gram "a a b" always follows "a a", so it tells nothing
    one = (2 * math.log2(3 / 2) + math.log2(3)) / 3
    two = (math.log2(2 / 1) + math.log2(2 / 1)) / 2
    assert nist([["a", "a", "b"]], [[["a", "a", "b"]]]) == pytest.approx(one + two)


def test_nists_length_penalty_is_a_half_at_two_thirds_of_the_average_length() -> None:
    # the answer "a b" of references with 2 and 4 words: average 3
    references = [[["a", "b"], ["c", "d", "e", "f"]]]
    without = (2 * math.log2(6)) / 2 + math.log2(1)
    assert nist([["a", "b"]], references) == pytest.approx(0.5 * without)
    assert nist([[]], references) == 0.0


def test_tokens_are_lower_case_with_punctuation_apart() -> None:
    assert tokens_13a("The pub's £30, near Café.") == ["the", "pub's", "£30", ",", "near", "café", "."]


@pytest.mark.skipif(
    find_spec("pycocoevalcap") is None or shutil.which("java") is None, reason="the extra metrics, and Java"
)
def test_meteor_cider_and_rouge_are_coco_captions() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the tokenizer's pipes are not ours
        scores = coco.coco_scores(["A cat sits on the mat."], [["A cat sits on the mat.", "The cat is there."]])
    assert set(scores) == {"meteor", "cider", "rouge_l_ptb"}
    assert scores["meteor"] == pytest.approx(1.0)
    assert scores["rouge_l_ptb"] == pytest.approx(1.0)


def test_what_is_missing_for_meteor_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "PTBTokenizer", None)
    with pytest.raises(coco.CocoUnavailable, match=r"polyprefix\[metrics\]"):
        coco.check_available()
