"""What the documents say is what there is."""

import re
from pathlib import Path

from simplecache.cli.main import make_parser
from simplecache.config import _BUCKET_KEYS, EVICTION_POLICIES
from simplecache.server.handle import STATUS
from simplecache.server.observe import METRICS

DOCS = Path(__file__).parent.parent / "docs"


def test_every_metric_of_a_node_is_documented_with_its_text():
    text = (DOCS / "configuration.md").read_text()
    for name, (_, meaning) in METRICS.items():
        assert f"| `{name}` | {meaning} |" in text


def test_every_bucket_key_and_policy_is_documented():
    text = (DOCS / "configuration.md").read_text()
    for key in _BUCKET_KEYS:
        assert f"| `{key}` |" in text
    for name in EVICTION_POLICIES:
        assert f"| `{name}` |" in (DOCS / "eviction.md").read_text()


def test_every_flag_of_serve_is_documented():
    text = (DOCS / "configuration.md").read_text()
    serve = make_parser()._subparsers._group_actions[0].choices["serve"]
    flags = {flag for action in serve._actions for flag in action.option_strings}
    assert [f for f in flags - {"-h", "--help"} if not re.search(rf"`{f}[ `]", text)] == []


def test_every_error_word_is_documented():
    text = (DOCS / "behaviour.md").read_text()
    for _, word in STATUS.values():
        assert f"`{word}`" in text


def test_links_between_documents_lead_somewhere():
    root = DOCS.parent
    for page in (*root.glob("*.md"), *DOCS.glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
