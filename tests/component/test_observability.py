"""Alerts, dashboard and scrape configuration in `docker/` say what the code, the runbook and the Compose file say."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.cli import app
from server.telemetry.catalogue import CATALOGUE, WORKER, Metric
from server.telemetry.exposition import render
from tests.fixtures.compose_file import ROOT, environment, parse, services
from tools.metrics_docs import PAGE, render_page

DOCKER = ROOT / "docker"
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
SCRAPE = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "mulligan.json").read_text())
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
OF_THE_SCRAPER = {"instance", "job"}
_SELECTED = re.compile(r"\b(mulligan_[a-z_]+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def example(metric: Metric) -> dict:
    value = [1.0] * (len(metric.bounds) + 2) if metric.kind == "histogram" else 1.0
    return {(metric.name, *("x" for _ in metric.labels)): value}


def exposed() -> dict[str, set[str]]:
    """The labels of every sample that an exposition can hold, by the sample's name."""
    once, own = ({}, {})
    for metric in CATALOGUE:
        (once if metric.once else own).update(example(metric))
    families = text_string_to_metric_families(render({1: own}, once, "")[1].decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


EXPOSED = exposed()


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield "annotation", annotation["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield "variable", variable["query"]["query"]
    for page in ("metrics", "runbook"):
        for number, query in enumerate(
            re.findall(r"[`'](?=[^`'\n]*mulligan_\w+[{\[)])([^`'\n]+)[`']", read_page(page))
        ):
            yield f"{page} {number}", query.replace(r"\|", "|")


def read_page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


QUERIES = list(expressions())


def test_every_metric_of_the_catalogue_is_in_an_exposition():
    names = {
        name for metric in CATALOGUE for name in ([metric.exposed] if not metric.bounds else [f"{metric.name}_sum"])
    }
    assert names <= set(EXPOSED)
    for metric in CATALOGUE:
        shown = EXPOSED[f"{metric.name}_sum" if metric.bounds else metric.exposed]
        assert shown == {*metric.labels, *([] if metric.once else [WORKER])}


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_asks_for_metrics_and_labels_that_there_are(where, query):
    selected = _SELECTED.findall(query)
    assert [name for name, _ in selected if name not in EXPOSED] == []
    known = {label for name, _ in selected for label in EXPOSED[name]} | OF_THE_SCRAPER
    if not selected:
        known |= {"alertstate", "alertname"}
        assert re.search(r"\bup\{|ALERTS\{", query)
    for name, matchers in selected:
        assert set(_LABEL.findall(matchers)) <= EXPOSED[name], name
    for labels in _GROUPED.findall(query):
        assert {label.strip() for label in labels.split(",") if label.strip()} <= known
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing)
    for name, _ in selected:
        if name.endswith("_total"):  # a counter alone says nothing
            assert re.search(rf"(rate|increase|label_values)\({name}", query), name


def test_the_queries_that_are_checked_are_many():
    assert len(QUERIES) > 60
    assert {where.split()[0] for where, _ in QUERIES} == {
        "alert",
        "panel",
        "annotation",
        "variable",
        "metrics",
        "runbook",
    }


def test_a_wrong_name_would_be_found():
    assert "mulligan_episodes" not in EXPOSED
    assert "mulligan_log_spool_total" not in EXPOSED


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_says_what_it_is_and_has_its_page(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
    section = RUNBOOK.split(f"\n## {rule['alert']}\n")[1].split("\n## ")[0]
    for part in ("**Means**", "**Look**", "**Do**"):
        assert part in section
    assert re.search(r"^```\n.*docker compose|As for \[|curl", section, re.MULTILINE | re.DOTALL)


def test_what_was_asked_for_is_alerted_and_nothing_in_the_runbook_is_left_over():
    alerts = {rule["alert"] for rule in RULES}
    assert len(alerts) == len(RULES)
    assert set(re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)) == alerts
    assert alerts >= {
        "MulliganSpoolGrowing", "MulliganAbstentions", "MulliganWorkerSilent", "MulliganRoundStuck",
        "MulliganDiskFilling", "MulliganExhaustedJump",
    }  # fmt: skip
    linked = set(re.findall(r"\]\(#(\w+)\)", RUNBOOK))
    assert linked <= {alert.lower() for alert in alerts}


def test_the_runbook_names_services_that_there_are():
    named = set(
        re.findall(
            r"docker compose (?:exec|ps|up -d|restart|run --rm|logs --since \d+[mh]) (?:-[a-z]+ )?([a-z-]+)", RUNBOOK
        )
    )
    assert {"api", "worker", "prometheus", "postgres"} <= named <= set(parse()["services"])


def test_the_runbook_gives_commands_that_there_are():
    root = typer.main.get_command(app)
    found = re.findall(r"mulligan ((?:[a-z]+ ?){1,2})([^\n`|]*)", RUNBOOK)
    assert len(found) > 20
    for words, rest in found:
        command = root
        for word in words.split():
            command = command.commands[word]  # pyright: ignore[reportAttributeAccessIssue]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, words


def test_the_scraper_finds_the_api_and_its_token():
    running = {**services("cpu"), **services("observability")}
    (job,) = SCRAPE["scrape_configs"]
    assert job["job_name"] == "mulligan"  # the alerts say it
    assert job["static_configs"] == [{"targets": [f"api:{environment(running['api'])['MULLIGAN_PORT']}"]}]
    command = "\n".join(running["prometheus"]["command"])
    assert f"> {job['authorization']['credentials_file']}" in command
    folder = job["authorization"]["credentials_file"].rpartition("/")[0]
    assert any(place.startswith(f"{folder}:mode=0700") for place in running["prometheus"]["tmpfs"])  # on no disk
    mounted = dict(volume.split(":")[:2][::-1] for volume in running["prometheus"]["volumes"])
    place = mounted["/etc/prometheus"]
    for rule_file in SCRAPE["rule_files"]:
        assert (ROOT / place / rule_file.removeprefix("/etc/prometheus/")).is_file()
    assert "/etc/prometheus/prometheus.yml" in command
    assert "metrics" in running["api"]["networks"]
    assert running["prometheus"]["networks"] == ["metrics"]


def test_who_watches_does_not_start_without_a_password_and_only_where_it_is_asked_for():
    for name in ("prometheus", "grafana"):
        assert parse()["services"][name]["profiles"] == ["observability"]
        assert "exit 1" in parse()["services"][name]["command"][0]
    token = services("observability", METRICS_TOKEN="of-the-scraper")
    assert environment(token["prometheus"])["METRICS_TOKEN"] == "of-the-scraper"
    api = services("cpu", METRICS_TOKEN="of-the-scraper")["api"]
    assert environment(api)["MULLIGAN_TELEMETRY__METRICS_TOKEN"] == "of-the-scraper"


def test_grafana_finds_its_dashboard_and_the_dashboard_its_data():
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["title"] and panel["targets"] for panel in panels)
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "mulligan.yml").read_text())["providers"]
    volumes = parse()["services"]["grafana"]["volumes"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in volumes
    assert "./docker/grafana/provisioning:/etc/grafana/provisioning:ro" in volumes


def test_panels_do_not_lie_over_one_another():
    cells: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["id"]) == panel["id"]
    tops = [panel["gridPos"]["y"] for panel in DASHBOARD["panels"]]
    assert all(above <= below for above, below in pairwise(tops))


def test_the_page_about_metrics_is_what_the_code_says():
    page = PAGE.read_text()
    assert page == render_page(page), "run `make docs`"
