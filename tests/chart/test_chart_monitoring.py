"""PodMonitors and alerts: off unless asked for, on ports and metrics that exist."""

import re

import pytest
from chart_harness import EVERYTHING, ROOT, render


def test_nothing_by_default():
    assert {
        doc["apiVersion"] for doc in render().docs if "monitoring" in doc["apiVersion"]
    } == set()


def test_every_part_is_scraped():
    rendered = render(EVERYTHING)
    found = {}
    for monitor in rendered.all("PodMonitor"):
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        (pod,) = [
            {
                port["name"]: port["containerPort"]
                for c in spec["containers"]
                for port in c.get("ports", [])
            }
            for _, metadata, spec in rendered.pods()
            if selector <= metadata["labels"].items()
        ]
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["interval"] == "30s"
        found[monitor["metadata"]["name"]] = (pod[endpoint["port"]], endpoint["path"])
    assert found == {
        "scs-cache": (7390, "/metrics"),
        "scs-control-plane": (21804, "/metrics"),
        "scs-envoy": (21802, "/stats/prometheus"),
    }


def alerts():
    (rule,) = render(EVERYTHING).all("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    (group,) = rule["spec"]["groups"]
    return {alert["alert"]: alert for alert in group["rules"]}


def test_alerts_use_metrics_that_are_documented():
    documented = "".join(
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("configuration", "control-plane")
    )
    metrics = {
        name for alert in alerts().values() for name in re.findall(r"scs_[a-z_]+", alert["expr"])
    }
    assert len(metrics) >= 6
    for metric in metrics:
        assert f"`{metric}" in documented, metric


@pytest.mark.parametrize("name", alerts())
def test_an_alert_is_about_this_namespace_and_says_what_to_do(name):
    alert = alerts()[name]
    selectors = re.findall(r"scs_[a-z_]+(\{[^}]*\})?", alert["expr"])
    assert set(selectors) == {'{namespace="cache-service"}'}
    assert alert["labels"]["severity"] in {"warning", "critical"}
    # Prometheus' own templates are left for Prometheus.
    assert "{{{" not in alert["annotations"]["summary"]
    assert len(alert["annotations"]["summary"]) > 40
    for variable in re.findall(r"\{\{(.*?)\}\}", alert["annotations"]["summary"]):
        assert variable.strip().startswith("$labels.")
