"""What counts as said otherwise than a record has it."""

import pytest

from training.pocket.facts import places_of, told_otherwise

PLACES = {"Burger King", "Café Sicilia", "The Eagle"}
RECORD = (
    "name : The Eagle | eatType : pub | food : French | priceRange : less than £20 | customer rating : 1 out of 5 "
    "| area : riverside | familyFriendly : no | near : Burger King"
)
SHORT = "name : Riverside Inn | eatType : pub"


@pytest.mark.parametrize(
    "text",
    [
        "The Eagle is a cheap French pub by the river, near Burger King. It is not family-friendly. Low rating.",
        "Rated 1 out of 5, The Eagle isn't suitable for children. It costs less than £20.",
        "The Eagle, an inexpensive adult-only pub, has a low customer rating.",
        "The Eagle is a bit noisy, its rating is 1 out of 5 stars, and it is child free.",
        "The Eagle: children aren’t welcome, and families are not permitted.",
        "The Eagle is kid unfriendly and has french fries for breakfast, food is cheap.",
        "The Eagle is near the city centre, and low-priced.",
        "The Eagle.",
    ],
)
def test_what_the_record_has_or_the_answer_leaves_out_is_not_wrong(text: str) -> None:
    assert told_otherwise(RECORD, text, PLACES) == set()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("The Mill is a French pub.", "name"),
        ("The Eagle is near Café Sicilia.", "near"),
        ("The Eagle serves Italian food.", "food"),
        ("The Eagle is in the city centre.", "area"),
        ("The Eagle is family-friendly.", "familyFriendly"),
        ("The Eagle is not cheap, and it is kid friendly.", "familyFriendly"),
        ("The Eagle is expensive.", "priceRange"),
        ("The Eagle has a high price range.", "priceRange"),
        ("The Eagle has a price range of more than £30.", "priceRange"),
        ("The Eagle is highly rated.", "customer rating"),
        ("The Eagle has a customer rating of 5 out of 5.", "customer rating"),
        ("The Eagle has an average customer rating.", "customer rating"),
        ("The Eagle is moderately rated, with 5 out of 5.", "customer rating"),
        ("The Eagle is in the centre of the city.", "area"),
    ],
)
def test_what_contradicts_the_record_is_wrong(text: str, field: str) -> None:
    assert told_otherwise(RECORD, text, PLACES) == {field}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Riverside Inn is a pub.", set()),
        ("Riverside Inn is a child-friendly pub in the city centre.", {"familyFriendly", "area"}),
        ("Riverside Inn is a pub near The Eagle.", {"near"}),
    ],
)
def test_what_the_record_does_not_have_is_wrong(text: str, wrong: set[str]) -> None:
    assert told_otherwise(SHORT, text, PLACES) == wrong


def test_what_is_nearby_is_known_from_the_records() -> None:
    assert places_of([RECORD, SHORT, "name : Aromi | near : Café Sicilia"]) == {"Burger King", "Café Sicilia"}
