"""The dashboard and the alert rules ask for metrics that a live server has, with labels that these have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from .process import chat_text, metric_values

FOLDER = Path(__file__).parents[3] / "docs" / "monitoring"
NAME = re.compile(r"shoal:\w+")
SELECTOR = re.compile(r"(shoal:\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)\s*=~?")


def dashboard() -> list[str]:
    found = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    asked = [variable["query"] for variable in found["templating"]["list"] if variable["type"] == "query"]
    return asked + [target["expr"] for panel in found["panels"] for target in panel.get("targets", ())]


def alerts() -> list[str]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "warn", "info")
    return [rule["expr"] for rule in group["rules"]]


@pytest.mark.parametrize("queries", [dashboard, alerts])
def test_every_query_names_metrics_that_there_are(client, prices, queries):
    client.post("/generate", json={"text": chat_text(prices, "red"), "sampling_params": {"max_new_tokens": 4}})
    samples = metric_values(client)
    labels: dict[str, set[str]] = {}
    for sample in samples:
        name, _, rest = sample.partition("{")
        labels.setdefault(name, set()).update(LABEL.findall(rest))
    asked = queries()
    assert len(asked) >= 8
    for query in asked:
        names = NAME.findall(query)
        assert names, query
        assert [name for name in names if name not in labels] == [], query
        assert query.count("(") == query.count(")")
        for name, inside in SELECTOR.findall(query):
            assert set(LABEL.findall(inside)) <= labels[name], (name, inside)
        for by in re.findall(r"by \(([^)]*)\)", query):
            grouped = {label.strip() for label in by.split(",")} - {"instance"}
            assert all(grouped & labels[name] == grouped for name in names), query


def test_panels_do_not_overlap():
    panels = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
