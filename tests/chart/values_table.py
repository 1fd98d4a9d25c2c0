"""The table of values in docs/kubernetes.md, made from the comments in values.yaml.

``python tests/chart/values_table.py`` writes it into the document; a test compares them.
"""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
VALUES = ROOT / "charts" / "simple-cache-service" / "values.yaml"
DOCUMENT = ROOT / "docs" / "kubernetes.md"
BLOCK = re.compile(r"(<!-- values: .*? -->\n).*?(<!-- end of values -->)", re.DOTALL)


def rows():
    """(key, default as JSON, text) of each documented key, in the order of the file."""
    lines = VALUES.read_text().splitlines()
    found = []

    def walk(node, path):
        for key, child in node.value:
            name = f"{path}{key.value}"
            above = lines[key.start_mark.line - 1].strip()
            if above.startswith("# -- "):
                default = json.dumps(yaml.safe_load(yaml.serialize(child)), ensure_ascii=False)
                found.append((name, default, above.removeprefix("# -- ")))
            elif isinstance(child, yaml.MappingNode):
                walk(child, f"{name}.")
            else:
                raise AssertionError(f"{name} has no comment '# -- ' above it")

    walk(yaml.compose("\n".join(lines)), "")
    return found


def table():
    head = "| Value | Default | |\n| --- | --- | --- |\n"
    return head + "".join(f"| `{key}` | `{default}` | {text} |\n" for key, default, text in rows())


def with_table(document):
    found, count = BLOCK.subn(lambda match: match[1] + table() + match[2], document)
    assert count == 1, "the document lacks the marks of the table"
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
