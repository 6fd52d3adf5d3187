"""The gate before a model is adopted: paired non-inferiority on every task that a rule names.

    stages: forgetting.yml
    candidate: with replay            # stage that is judged
    rules:
      - {task: text, margin: 0.03}                    # at most 3 points below the first stage
      - {task: numbers, against: speech, margin: 0.05}
      - {task: numbers, at_least: 0.5}
    fingerprints: {base: 3f2a...}     # model of a stage that must not have changed
    in_use: false                     # whether the candidate is used already

A rule passes if the lower 95 % bound of the difference is above -margin, fails if the upper bound is below it, and is
inconclusive in between, where a person decides. Each bound is one-sided. Data that are missing or of another model
fail.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from salmonn_jax.config.typed import STRICT, from_dict
from salmonn_jax.errors import UserError, unknown_name
from salmonn_jax.forgetting.measurement.results import cell_score, pair
from salmonn_jax.forgetting.measurement.stages import Column, ForgettingConfig
from salmonn_jax.forgetting.yaml_files import read_yaml
from salmonn_jax.paths import Path

Z_SCORE_ONE_SIDED = 1.644854  # a standard normal variable lies below it with a probability of 95 %


class Verdict(enum.Enum):
    """Outcome of a rule or of the gate. The value is the exit code of the command."""

    PASS = 0
    FAIL = 2
    INCONCLUSIVE = 3
    ROLLBACK = 4


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rule:
    """Requirement on the candidate for one task."""

    task: str = Field(min_length=1, description="name of the task")
    channel: str = Field("", description='"text to text" or "speech to text"; by default the only one')
    split: str = Field("", description="split; by default the only one")
    against: str = Field("", description="stage that it is compared with; by default the first one")
    margin: float | None = Field(None, ge=0, lt=1, description="score that may be lost at most")
    at_least: float | None = Field(None, gt=0, le=1, description="score that must be reached")

    @model_validator(mode="after")
    def _check_one_limit(self):
        if (self.margin is None) == (self.at_least is None):
            raise ValueError("margin: give either margin or at_least")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GateConfig:
    """A gate."""

    stages: str = Field(description="forgetting.yml with stages and tasks")
    candidate: str = Field(description="stage that is judged")
    rules: list[Rule] = Field(min_length=1, description="what it must reach")
    fingerprints: dict[str, str] = Field(
        default_factory=dict, description="{stage: fingerprint of its model, as in run.json of its evaluations}"
    )
    in_use: bool = Field(False, description="whether the candidate is used already, so that a failure is a rollback")


@dataclasses.dataclass(frozen=True)
class RuleOutcome:
    """Outcome of a rule.

    Attributes:
      rule: the rule.
      verdict: the verdict.
      reason: one line with the numbers.
    """

    rule: Rule
    verdict: Verdict
    reason: str


def read_gate(path: Path) -> GateConfig:
    """Reads gate.yml. Raises UserError if the file is missing or wrong."""
    return from_dict(GateConfig, read_yaml(path))


def check_gate(gate: GateConfig, config: ForgettingConfig) -> None:
    """Raises UserError if the gate names an unknown stage, or the candidate as its own reference."""
    names = [stage.name for stage in config.stages]
    named = [("candidate", gate.candidate), *(("fingerprints", name) for name in gate.fingerprints)]
    named += [(f"rules[{i}].against", rule.against) for i, rule in enumerate(gate.rules) if rule.against]
    for field, name in named:
        if name not in names:
            raise unknown_name(f"stage in {field}", name, names)
    for i, rule in enumerate(gate.rules):
        if rule.margin is not None and (rule.against or names[0]) == gate.candidate:
            raise UserError(f"rules[{i}]: compares {gate.candidate} with itself; set against to another stage")


def judge(
    gate: GateConfig,
    config: ForgettingConfig,
    columns: Sequence[Column],
    fingerprints: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Verdict, list[RuleOutcome]]:
    """Applies all rules.

    Args:
      gate: the gate, checked by `check_gate`.
      config: stages and tasks.
      columns: predictions by task.
      fingerprints: fingerprints of the models that the evaluations of each stage were made with.

    Returns:
      The verdict, and the outcome of every rule, those about stale evaluations first.
    """
    outcomes = list(_stale(gate, fingerprints or {}))
    outcomes += [_apply(rule, gate, config, columns) for rule in gate.rules]
    verdicts = {outcome.verdict for outcome in outcomes}
    if Verdict.FAIL in verdicts:
        return (Verdict.ROLLBACK if gate.in_use else Verdict.FAIL), outcomes
    return (Verdict.INCONCLUSIVE if Verdict.INCONCLUSIVE in verdicts else Verdict.PASS), outcomes


def _stale(gate: GateConfig, fingerprints: Mapping[str, Sequence[str]]) -> list[RuleOutcome]:
    """Returns a failure for each stage whose evaluations are of another model than the gate names."""
    outcomes = []
    for stage, expected in gate.fingerprints.items():
        others = sorted({found for found in fingerprints.get(stage, [""]) if found != expected})
        if others:
            reason = f"the evaluations of {stage} are of model {others[0] or 'unknown'}, not {expected}; evaluate again"
            outcomes.append(RuleOutcome(gate.rules[0], Verdict.FAIL, reason))
    return outcomes


def _apply(rule: Rule, gate: GateConfig, config: ForgettingConfig, columns: Sequence[Column]) -> RuleOutcome:
    names = [stage.name for stage in config.stages]
    found = [
        column
        for column in columns
        if column.task.task == rule.task and rule.channel in ("", column.channel) and rule.split in ("", column.split)
    ]
    if len(found) != 1:
        where = ", ".join(f"{column.channel}, {column.split}" for column in found)
        reason = f"{rule.task} is measured more than once ({where}); name channel or split" if found else "not measured"
        return RuleOutcome(rule, Verdict.FAIL, f"{rule.task}: {reason}")
    column, candidate = found[0], names.index(gate.candidate)
    if rule.at_least is not None:
        return _reaches(rule, column, candidate)
    reference = names.index(rule.against) if rule.against else 0
    paired = pair(column, reference, candidate)
    if paired is None:
        lacking = [names[stage] for stage in (reference, candidate) if not column.items[stage]]
        what = f"{' and '.join(lacking)} was not measured" if lacking else "there is nothing that can be compared"
        return RuleOutcome(rule, Verdict.FAIL, f"{column.name}: {what}")
    moved, difference = paired.transitions, paired.later_score - paired.earlier_score
    if difference != difference:
        return RuleOutcome(rule, Verdict.FAIL, f"{column.name}: the score is not a number")
    if moved is not None and len(set(paired.blocks)) == len(paired.blocks):
        low, high = moved.interval(Z_SCORE_ONE_SIDED)  # also right for few items, which a bootstrap is not
    else:
        low, high, _ = paired.interval(0.90)
    against = names[reference]
    if low is None or high is None:
        reason = f"{column.name}: {100 * difference:+.1f} points against {against}, without interval (one speaker)"
        return RuleOutcome(rule, Verdict.INCONCLUSIVE, reason)
    reason = (
        f"{column.name}: {100 * difference:+.1f} points against {against} (bounds {100 * low:+.1f} and "
        f"{100 * high:+.1f}, {len(paired.blocks)} items), {-100 * rule.margin:.1f} allowed"
    )
    return RuleOutcome(rule, _compare(low, high, -rule.margin), reason)


def _reaches(rule: Rule, column: Column, candidate: int) -> RuleOutcome:
    """Judges a rule with `at_least`."""
    score = cell_score(column, list(column.items[candidate].values()))
    if score.value is None or score.value != score.value:
        return RuleOutcome(rule, Verdict.FAIL, f"{column.name}: not measured")
    if score.low is None or score.high is None:
        reason = f"{column.name}: {100 * score.value:.1f}, without interval"
        return RuleOutcome(rule, Verdict.INCONCLUSIVE, reason)
    reason = (
        f"{column.name}: {100 * score.value:.1f} (bounds {100 * score.low:.1f} and {100 * score.high:.1f}, "
        f"{score.count} items), {100 * rule.at_least:.1f} required"
    )
    return RuleOutcome(rule, _compare(score.low, score.high, rule.at_least), reason)


def _compare(low: float, high: float, limit: float) -> Verdict:
    """Returns whether an interval is above a limit, below it, or neither."""
    return Verdict.PASS if low >= limit else Verdict.FAIL if high < limit else Verdict.INCONCLUSIVE
