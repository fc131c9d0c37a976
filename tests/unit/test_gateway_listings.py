"""Who listed a resource to a client, where others claim it later."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from vsm.gateway.listings import MOST_SPANS, Listings
from vsm.protocol.catalogue import Surface, merge

URI = "x://1"


def seen(listings: Listings, *integrations: str) -> int:
    """The turn in which these claim the one resource."""
    item = {"uri": Raw(b'"x://1"'), "name": Raw(b'"one"')}
    listings.see(merge({name: Surface("", {"resources/list": [item]}) for name in integrations}))
    return listings.turn


def test_the_one_that_listed_it_alone_serves_it_to_whom_it_was_listed() -> None:
    listings = Listings()
    before = seen(listings)
    listed = seen(listings, "a")
    contested = seen(listings, "a", "b")
    assert before < listed < contested
    assert listings.lister(URI, ("a", "b"), [listed]) == "a"
    assert listings.lister(URI, ("a", "b"), [before, listed, contested]) == "a"
    for turns in ([], [before], [contested], [before, contested]):
        assert listings.lister(URI, ("a", "b"), turns) is None


def test_the_latest_listing_counts_and_whoever_claims_it_no_more_does_not() -> None:
    listings = Listings()
    of_a, of_b = seen(listings, "a"), seen(listings, "b")
    seen(listings, "a", "b", "c")
    assert listings.lister(URI, ("a", "b", "c"), [of_a]) == "a"
    assert listings.lister(URI, ("a", "b", "c"), [of_a, of_b]) == "b"
    seen(listings, "a", "c")
    assert listings.lister(URI, ("a", "c"), [of_a]) == "a"
    assert listings.lister(URI, ("a", "c"), [of_a, of_b]) is None


def test_what_nothing_changes_is_the_same_turn() -> None:
    listings = Listings()
    assert seen(listings, "a") == seen(listings, "a") == 1
    assert seen(listings, "a", "b") == seen(listings, "a", "b") == 2


def test_what_one_claim_comes_and_goes_is_kept_within_a_bound() -> None:
    listings = Listings()
    first = seen(listings, "a")
    for _ in range(MOST_SPANS - 1):
        seen(listings, "a", "b")
        assert listings.lister(URI, ("a", "b"), [first]) == "a"
        last = seen(listings, "a")
    for _ in range(MOST_SPANS):
        seen(listings, "a", "b")
        assert listings.lister(URI, ("a", "b"), [last]) == "a"
        last = seen(listings, "a")
    seen(listings, "a", "b")
    assert listings.lister(URI, ("a", "b"), [first]) is None
    assert len(listings._spans[URI]) == MOST_SPANS


claims = st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=MOST_SPANS)


@given(claims, st.data())
def test_it_agrees_with_what_every_list_showed(steps: list[set[str]], data: st.DataObject) -> None:
    listings, turns, shown = Listings(), [], None
    for claimants in steps:
        turn = seen(listings, *sorted(claimants))
        if data.draw(st.booleans()):
            turns.append(turn)
            shown = next(iter(claimants)) if len(claimants) == 1 else shown if claimants else None
        elif not claimants:
            shown = None  # nobody has it any more: what was listed is forgotten
    expected = shown if shown in steps[-1] else None
    if len(steps[-1]) > 1:
        assert listings.lister(URI, sorted(steps[-1]), turns) == expected
