"""The alert rules and the dashboard of deploy/monitoring use metrics that exist, and sections that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from island.kernel.telemetry import REGISTRY
from tests.contracts import metrics
from tests.contracts.promtool import promtool
from tests.contracts.test_links import anchors

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
SCRAPE_LABELS = {"instance", "job"}


def series() -> dict[str, set[str]]:
    """The labels of every series of /metrics, by name."""
    found: dict[str, set[str]] = {"up": set()}
    for each in metrics.defined():
        labels = set(each.labels)
        if each.kind == "histogram":
            found |= {f"{each.name}_bucket": labels | {"le"}, f"{each.name}_sum": labels, f"{each.name}_count": labels}
        else:
            found[each.name] = labels
    for family in REGISTRY.collect():
        if family.name.startswith("process_"):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


def check_expression(expression: str) -> None:
    """Fail if an expression uses a series or a label that does not exist."""
    known = series()
    without_text = re.sub(r'"[^"]*"', '""', expression)
    used = set(re.findall(r"\b(?:island_|process_)\w+|\bup\b", without_text))
    assert used, expression
    assert used <= set(known), f"{used - set(known)} in {expression}"
    for name, selectors in re.findall(r"\b(\w+)\{([^}]*)\}", without_text):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors))
        assert labels <= known[name] | SCRAPE_LABELS, expression
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", without_text) for label in group.split(", ")}
    assert grouped <= SCRAPE_LABELS.union(*(known[name] for name in used)), expression


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    check_expression(rule["expr"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    page, _, anchor = notes["runbook"].partition("#")
    assert anchor in anchors(ROOT / page), notes["runbook"]
    rows = re.findall(rf"^\| `{rule['alert']}` \|(.*)\|$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    (cells,) = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert cells[1] == rule.get("for", "at once").replace("m", " min"), "the guide has the time of every alert"
    assert cells[2] == rule["labels"]["severity"] and cells[3].endswith(f"(#{anchor})")


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    tried = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    quiet = {each["alertname"] for test in tests for each in test["alert_rule_test"] if not each["exp_alerts"]}
    assert tried == quiet == {rule["alert"] for rule in rules()}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return found


def targets() -> list[tuple[str, str]]:
    """Expression and legend of every target of the panels."""
    return [(target["expr"], target["legendFormat"]) for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize(("expression", "legend"), targets())
def test_a_panel_uses_series_and_labels_that_exist(expression: str, legend: str) -> None:
    plain = expression.replace("$__rate_interval", "5m")
    check_expression(plain)
    known = series()
    labels = SCRAPE_LABELS.union(*(known[name] for name in known if re.search(rf"\b{name}\b", expression)))
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels


def test_the_dashboard_is_complete() -> None:
    found = panels()
    assert len({panel["id"] for panel in found}) == len({panel["title"] for panel in found}) == len(found)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in found)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, "panels do not overlap"


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    run = promtool()
    assert "SUCCESS" in run("check", "rules", str(FOLDER / "alerts.yaml"))
    assert "SUCCESS" in run("test", "rules", str(FOLDER / "alerts_test.yaml"))
    run("check", "config", "--syntax-only", str(FOLDER / "prometheus.yaml"))


def test_promtool_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules_of_panels = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, (expression, _) in enumerate(targets())
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules_of_panels}]}))
    assert "SUCCESS" in promtool()("check", "rules", str(path))
