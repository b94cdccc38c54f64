"""Stopping rules on record: what a certificate keeps of its rule, and how its votes are decided again from that."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from certibox.confidence.binomial import check_alpha
from certibox.confidence.gaussian import NoiseLaw
from certibox.confidence.looks import goes_on
from certibox.confidence.sequential import RULES, Rule
from certibox.confidence.stopping import AnyLevelRule, Decision, Looks, RuleTable, StoppingRule, asked, decided, due
from certibox.errors import InvalidInput

RESERVED = ("cap", "alpha", "spent")  # what a certificate adds to the settings of its rule


def record(rule: StoppingRule, n: int, alpha: float, spent: bool = False) -> dict[str, Any]:
    """What a certificate keeps of its rule: the settings as values of JSON, with its "cap" n and its "alpha".

    Where a number of queries to spend may have ended the votes at any look, it keeps "spent" too.

    Args:
        rule: Stopping rule, of ours or of a stranger.
        n: Maximum number of votes.
        alpha: Failure probability under which the rule runs.
        spent: Whether the votes may have ended before the rule ended them.

    Raises:
        InvalidInput: if the settings are no values of JSON.
    """
    return {**_settings(rule), "cap": n, "alpha": alpha} | ({"spent": True} if spent else {})


def check_rule(rule: StoppingRule) -> None:
    """Raise `InvalidInput` unless this is a stopping rule that a certificate can keep.

    Args:
        rule: Stopping rule, of ours or of a stranger.
    """
    kind = type(rule).__name__
    if not isinstance(rule, StoppingRule):
        wanted = "an object with radii, sizes, decide and as_dict, such as certibox.EProcess(radii=(0.25, 0.5))"
        raise InvalidInput(f"rule is a {kind}; wanted a stopping rule: {wanted}")
    kept = _settings(rule)
    name, radii = kept.get("name"), None if rule.radii is None else [float(radius) for radius in rule.radii]
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"as_dict of the stopping rule {kind} has the name {name!r}; wanted a name of its own")
    if name in RULES and type(rule) is not RULES[name]:
        raise InvalidInput(f"the stopping rule {kind} has the name {name!r}, which is certibox's; wanted another name")
    if taken := [key for key in RESERVED if key in kept]:
        raise InvalidInput(f"as_dict of the stopping rule {kind} has {taken[0]!r}, which certificates set themselves")
    if "radii" not in kept or kept["radii"] != radii:
        raise InvalidInput(f"as_dict of the stopping rule {kind} has the radii {kept.get('radii')}; wanted {radii}")
    if radii is not None and (not radii or radii[0] < 0 or radii != sorted(set(radii))):
        raise InvalidInput(f"the stopping rule {kind} has the radii {radii}; wanted ascending radii in pixels, or None")


def rule_from_dict(kept: Mapping[str, Any], rules: RuleTable | None = None) -> StoppingRule:
    """The rule that `as_dict` (or `record`) wrote.

    One of certibox's is built once: the rows of a file all have it.

    Args:
        kept: Settings of the rule with its "name".
        rules: Builders of rules of your own by their names; certibox's names are known.

    Raises:
        InvalidInput: for an unknown name, setting or value.
    """
    text = _text_of_ours(kept)
    return _ours(text) if text else _built(kept, rules)


@lru_cache(maxsize=256)
def _ours(text: str) -> StoppingRule:
    return _built(json.loads(text), None)


def _text_of_ours(kept: Mapping[str, Any]) -> str | None:
    """The settings of one of certibox's rules as JSON; None for those of a stranger."""
    if not isinstance(name := kept.get("name"), str) or name not in RULES:
        return None
    try:
        return json.dumps(dict(kept))
    except (TypeError, ValueError):
        return None


def _built(kept: Mapping[str, Any], rules: RuleTable | None) -> StoppingRule:
    settings: dict[str, Any] = {key: value for key, value in kept.items() if key not in ("name", *RESERVED)}
    name, table = kept.get("name"), {**(rules or {}), **RULES}
    if not isinstance(name, str) or name not in table:
        known = f"wanted one of {', '.join(table)}"
        raise InvalidInput(f"the stopping rule is {name!r}; {known}, or what builds it: rules={{{name!r}: builder}}")
    taken = inspect.signature(table[name]).parameters
    unknown = [key for key in settings if key not in taken]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        raise InvalidInput(f"the stopping rule {name} has no setting {unknown[0]!r}; wanted {', '.join(taken)}")
    try:
        return table[name](**settings)
    except TypeError as error:
        raise InvalidInput(f"the stopping rule {name} cannot be built from {settings}: {error}") from error


def replay(kept: Mapping[str, Any], looks: Looks, law: NoiseLaw, rules: RuleTable | None = None) -> Decision:
    """The last decision of a recorded certificate, from its votes alone.

    Args:
        kept: Rule of the certificate, as `record` gave it.
        looks: Pairs (samples so far, successes so far) of the certificate.
        law: Law of the noise.
        rules: Builders of rules of your own by their names.

    Raises:
        InvalidInput: if a look was not at its due size, its votes cannot follow the look before, an earlier look had
            already ended the sampling, or the rule is not known.
    """
    rule, n, alpha = _rebuilt(kept, rules)
    thresholds = asked(rule, law)
    _check_looks(looks, due(rule, n, alpha, thresholds))
    # What goes on by the short way goes on; whatever else is a matter of each look's own decision.
    quick = isinstance(rule, Rule) and goes_on(rule, looks[:-1], n, alpha, thresholds)
    for k in range(1, 1 if quick else len(looks)):
        if decided(rule, looks[:k], n, alpha, thresholds).stop:
            raise InvalidInput(f"the rule stops at look {k}; the record has {len(looks)} looks: it was not made by it")
    return decided(rule, looks, n, alpha, thresholds)


def p_lower_at(
    kept: Mapping[str, Any], looks: Looks, law: NoiseLaw, at: float, rules: RuleTable | None = None
) -> float:
    """The bound that recorded looks give at the failure probability `at`, whatever they were made for.

    Valid for rules whose bounds hold at all looks at once at every level, so also at the look where the rule stopped;
    `at` must not be chosen by these votes. No radius is promised to be reached.

    Args:
        kept: Rule of the certificate, as `record` gave it.
        looks: Pairs (samples so far, successes so far) of the certificate.
        law: Law of the noise.
        at: Failure probability of the bound, in (0, 1).
        rules: Builders of rules of your own by their names.

    Raises:
        InvalidInput: if the looks are not at their due sizes, or the rule says nothing of another level.
    """
    rule, n, alpha = _rebuilt(kept, rules)
    thresholds = asked(rule, law)
    _check_looks(looks, due(rule, n, alpha, thresholds))
    if check_alpha(at) == alpha:
        return decided(rule, looks, n, alpha, thresholds).p_lower
    if not isinstance(rule, AnyLevelRule):
        came = f"the stopping rule {kept['name']} ran at alpha = {alpha} and gives no bound at {at}"
        raise InvalidInput(f"{came}; wanted the alpha that it ran at, or a rule with p_lower_at")
    return float(rule.p_lower_at(looks, n, alpha, thresholds, at))


def _settings(rule: StoppingRule) -> dict[str, Any]:
    """`as_dict` as JSON has it, so that what is kept equals what is read back."""
    try:
        return json.loads(json.dumps(dict(rule.as_dict()), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"as_dict of the stopping rule {type(rule).__name__} gives no values of JSON: {error}"
        ) from error


def _rebuilt(kept: Mapping[str, Any], rules: RuleTable | None) -> tuple[StoppingRule, int, float]:
    """A recorded rule, the maximum n that it was used with and the alpha that it ran under."""
    text = _text_of_ours(kept)
    return _ours_rebuilt(text) if text else _checked(kept, rules)


@lru_cache(maxsize=256)
def _ours_rebuilt(text: str) -> tuple[StoppingRule, int, float]:
    return _checked(json.loads(text), None)


def _checked(kept: Mapping[str, Any], rules: RuleTable | None) -> tuple[StoppingRule, int, float]:
    """A recorded rule that is recorded again as it is, with its maximum n and its alpha."""
    rule, n, alpha = rule_from_dict(kept, rules), kept.get("cap"), kept.get("alpha")
    check_rule(rule)
    if not isinstance(n, int):
        raise InvalidInput(f"the recorded rule has the cap {n!r}; wanted the n it was used with")
    if not isinstance(alpha, float):
        raise InvalidInput(f"the recorded rule has the alpha {alpha!r}; wanted the one it ran under")
    again = record(rule, n, alpha, "spent" in kept)
    if changed := [key for key in {**kept, **again} if key not in kept or again.get(key) != kept[key]]:
        came = f"the stopping rule {kept['name']} has {changed[0]} = {kept.get(changed[0])!r} in the record"
        raise InvalidInput(f"{came}, and {again.get(changed[0])!r} when it is built from it")
    return rule, n, check_alpha(alpha)


def _check_looks(looks: Looks, wanted: tuple[int, ...]) -> None:
    """Raise `InvalidInput` unless the looks are the first of those due, and the votes of each can follow the last."""
    sizes = tuple(samples for samples, _ in looks)
    if not looks or sizes != wanted[: len(sizes)]:
        raise InvalidInput(
            f"the looks were at {list(sizes)} samples; due were {list(wanted[: len(sizes)]) or wanted[0]}"
        )
    for (n0, s0), (n1, s1) in zip([(0, 0), *looks], looks, strict=False):
        if not 0 <= s1 - s0 <= n1 - n0:
            raise InvalidInput(f"{s1} successes in {n1} samples cannot follow {s0} in {n0}: the record is broken")
