"""The division of a budget: who gets what, what moves, and what never happens."""

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.budget import Change, Claim, divide, need_of, plan
from vsm.systems.reasons import why

MIB = 2.0**20


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        floor = draw(st.floats(1, 100))
        ceiling = floor + draw(st.floats(0, 400))
        held, need = draw(st.floats(1, 600)), draw(st.floats(0, 800))
        weight = draw(st.floats(0.5, 10))
        found.append(Claim(f"i{number}", floor, ceiling, held, need, weight))
    return found


@given(claims(), st.floats(1, 3000))
def test_division_stays_within_budget_floors_and_ceilings(
    those: list[Claim], budget: float
) -> None:
    given_ = divide(budget, those)
    assert sum(given_.values()) <= budget * (1 + 1e-9)
    enough = sum(claim.floor for claim in those) <= budget
    for claim in those:
        assert given_[claim.name] <= claim.ceiling * (1 + 1e-9)
        if enough:
            assert given_[claim.name] >= claim.floor * (1 - 1e-9)
        else:
            assert given_[claim.name] > 0  # cut, never starved


@given(claims(), st.floats(1, 3000))
def test_nobody_has_more_than_he_needs_while_another_is_short(
    those: list[Claim], budget: float
) -> None:
    got = divide(budget, those)
    short = [c for c in those if got[c.name] < min(c.need, c.ceiling) * (1 - 1e-6)]
    if short and sum(c.floor for c in those) <= budget:
        for claim in those:
            assert got[claim.name] <= max(claim.need, claim.floor) * (1 + 1e-6)


@given(claims(), st.floats(1, 3000))
def test_whoever_is_short_has_as_much_above_his_floor_for_his_weight_as_every_other(
    those: list[Claim], budget: float
) -> None:
    got, near = divide(budget, those), 1e-6 * budget
    wanted = {c.name: min(max(c.need, c.floor), c.ceiling) for c in those}
    if not sum(c.floor for c in those) < budget < sum(wanted.values()):
        return
    assert abs(sum(got.values()) - budget) <= near, "nothing is left while somebody is short"
    level = {c.name: (got[c.name] - c.floor) / c.weight for c in those}
    short = [level[name] for name in got if got[name] < wanted[name] - near]
    assert max(short, default=0) - min(short, default=0) <= near
    assert all(one <= min(short, default=one) + near for one in level.values())


@given(claims(), st.floats(1, 3000), st.randoms(use_true_random=False))
def test_order_of_the_claims_does_not_matter(
    those: list[Claim], budget: float, random: object
) -> None:
    other = list(those)
    random.shuffle(other)  # type: ignore[attr-defined]
    one, two = divide(budget, those), divide(budget, other)
    assert all(abs(one[name] - two[name]) <= 1e-6 * budget for name in one)


@given(claims(), st.floats(1, 3000))
def test_plan_never_exceeds_the_budget_on_the_way_nor_repeats_itself(
    those: list[Claim], budget: float
) -> None:
    found = plan(budget, those)
    held = {claim.name: claim.held for claim in those}
    assert all(change.before == held[change.name] for change in found.changes)
    before = sum(held.values())
    for change in found.changes:  # lowered first: no step but towards the budget goes above it
        held[change.name] = change.after
        now = sum(held.values())
        assert now <= max(budget, before) * (1 + 1e-6)
    again = plan(budget, [c._replace(held=held[c.name]) for c in those])
    raised = {c.name for c in again.changes if c.after > c.before}
    assert not raised & {c.name for c in found.changes if c.after < c.before}


@given(claims(), st.floats(1, 3000), st.sampled_from([0.0, 0.01, 1.0, 5.0]))
def test_nobody_is_put_below_his_floor(those: list[Claim], budget: float, quantum: float) -> None:
    floors = {claim.name: claim.floor for claim in those}
    for change in plan(budget, those, quantum=quantum).changes:
        assert change.after >= min(change.before, floors[change.name]) * (1 - 1e-9)


def test_floors_above_the_budget_are_said_and_nobody_is_cut() -> None:
    found = plan(100, [Claim("a", 90, 500, 90, 20), Claim("b", 90, 500, 90, 20)])
    assert found.changes == ()
    assert "exceed the budget" in found.reason
    fixed = Claim("b", 90, 500, 90, 20, fixed="damped")
    assert plan(100, [Claim("a", 90, 500, 90, 20), fixed]).changes == ()


def test_wide_limits_stay_and_the_plan_says_why() -> None:
    found = plan(1000, [Claim("a", 10, 500, 500, 40), Claim("b", 10, 400, 400, 90)])
    assert found.changes == ()
    assert found.reason == "every limit is wide enough for what is used"
    assert plan(1000, []).reason == "nobody runs whose limit could be moved"


def test_who_is_short_is_raised_within_the_ceiling_and_the_budget() -> None:
    need = need_of([95.0], 100.0, pressed=True)
    assert need == 150.0
    found = plan(1000, [Claim("a", 10, 120, 100, need), Claim("b", 10, 400, 400, 90)])
    assert [(c.name, c.after, c.rule) for c in found.changes] == [("a", 120, "raise.need")]
    assert found.bounded == ("a",)


def test_who_can_spare_gives_to_who_is_short_but_keeps_what_he_needs() -> None:
    found = plan(600, [Claim("a", 50, 500, 100, 300), Claim("b", 50, 500, 500, 120)])
    assert [(c.name, c.rule) for c in found.changes] == [
        ("b", "lower.budget"),
        ("a", "raise.need"),
    ]
    after = {change.name: change.after for change in found.changes}
    assert after["a"] == 300
    assert 120 <= after["b"] <= 300


def test_weight_decides_who_gets_more_when_both_are_short() -> None:
    both = [Claim("a", 10, 900, 100, 800, weight=3), Claim("b", 10, 900, 100, 800)]
    got = divide(420, both)
    assert round(got["a"] - 10) == 3 * round(got["b"] - 10)


def test_fixed_limit_is_left_alone_and_counts_against_the_budget() -> None:
    those = [Claim("a", 10, 500, 100, 300, fixed="set by command"), Claim("b", 10, 500, 100, 900)]
    found = plan(400, those)
    assert [(c.name, c.after) for c in found.changes] == [("b", 300)]
    assert set(found.short) == {"a", "b"}


def test_limits_above_the_budget_come_down_although_nobody_is_short() -> None:
    found = plan(300, [Claim("a", 10, 500, 400, 20), Claim("b", 10, 500, 400, 20)])
    assert sum(change.after for change in found.changes) <= 300
    assert {change.rule for change in found.changes} == {"lower.budget"}


def test_raise_that_others_make_too_little_room_for_does_not_come() -> None:
    """Three of a hundred are not worth a move, so they are not there to be given."""
    a, b = Claim("a", 1, 500, 100, 97), Claim("b", 1, 500, 60, 150)
    found = plan(200, [a, b])
    assert found.changes == ()
    assert set(found.short) == {"b"}


def reasons(budget: float, *claims: Claim) -> dict[str, str]:
    """Why each limit of memory moves, in MiB."""
    scaled = [
        one._replace(
            **{key: getattr(one, key) * MIB for key in ("floor", "ceiling", "held", "need")}
        )
        for one in claims
    ]
    found = plan(budget * MIB, scaled)
    return {one.name: why("memory", one, scaled, budget * MIB) for one in found.changes}


def test_each_move_says_in_words_and_units_why_it_is_made() -> None:
    used = reasons(1000, Claim("a", 10, 500, 100, 120))
    assert used == {
        "a": "its greatest use lately and a quarter more are 120 MiB, its limit is 100 MiB"
    }
    met = reasons(1000, Claim("a", 10, 140, 100, 150, pressed=True))["a"]
    assert met.startswith(
        "it met its limit of 100 MiB, so what it needs is not known: 150 MiB is tried"
    )
    assert met.endswith("its ceiling is 140 MiB")
    over = reasons(150, Claim("a", 10, 500, 100, 20), Claim("b", 10, 500, 100, 20))["a"]
    assert over == "all limits together are 200 MiB, the budget is 150 MiB; it needs 20 MiB"
    given = reasons(200, Claim("a", 10, 500, 100, 150), Claim("b", 10, 500, 100, 20))["b"]
    assert given == "a needs more than the budget has left; it needs 20 MiB"
    rounded = Change("a", 40.0 * MIB, 43.0 * MIB, "raise.need")
    close = Claim("a", 10 * MIB, 500 * MIB, 40 * MIB, 43.8 * MIB)
    assert "room" not in why("memory", rounded, [close], 1000 * MIB), "rounded, not cut"
    above = reasons(1000, Claim("a", 10, 50, 100, 20))["a"]
    assert above == "it has more than its ceiling of 50 MiB"
    floor = reasons(1000, Claim("a", 200, 500, 100, 20))["a"]
    assert floor == "nobody is left below his floor, here 200 MiB"


def test_a_pool_is_explained_in_instances() -> None:
    claim = Claim("a", 1, 8, 2, 4)
    change = Change("a", 2, 3, "raise.need")
    told = why("instances", change, [claim], 3)
    assert told.endswith("are 4, its limit is 2; the budget has room for 3")
    foreseen = why("instances", change._replace(rule="raise.foreseen"), [claim], 3)
    assert foreseen == "system 4 expects that it will need 4"
