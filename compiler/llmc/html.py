"""Values as notebooks show them: one self-contained piece of HTML, everything escaped. jinja2 is imported when used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

ROWS = 400  # of a table, and lines of a text, that are shown
_CELL = "text-align:left;padding:1px 10px 1px 0"
_TEMPLATE = """\
<div style="font-family:sans-serif;font-size:13px">
<b>{{ title }}</b>
{% for name, value in facts.items() %}<div>{{ name }}: <code>{{ value }}</code></div>
{% endfor %}{% for table in tables %}<table style="border-collapse:collapse;margin:6px 0;text-align:left">
{% if table.title %}<caption style="text-align:left;font-weight:bold">{{ table.title }}</caption>
{% endif %}<tr>{% for name in table.columns %}<th style="{{ cell }}">{{ name }}</th>{% endfor %}</tr>
{% for row in table.shown %}<tr>
{%- for value in row %}<td style="{{ cell }};font-family:monospace">{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if table.left %}<div>... and {{ table.left }} rows more</div>
{% endif %}{% endfor %}</div>"""


@dataclass(frozen=True)
class Table:
    """A table; of a long one the first rows are shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""

    @property
    def shown(self) -> Sequence[Sequence[object]]:
        return self.rows[:ROWS]

    @property
    def left(self) -> int:
        return max(len(self.rows) - ROWS, 0)


@dataclass(frozen=True)
class Page:
    """What is shown of a value.

    Args:
        plain: the same as text, where there is no jinja2.
    """

    title: str
    plain: str
    facts: Mapping[str, object] = field(default_factory=dict)
    tables: Sequence[Table] = ()

    def __str__(self) -> str:
        try:
            import jinja2
        except ImportError:
            return _text(self.title, self.plain)
        template = jinja2.Environment(autoescape=True).from_string(_TEMPLATE)
        return template.render(title=self.title, facts=self.facts, tables=self.tables, cell=_CELL)


def _text(title: str, text: str) -> str:
    lines = text.splitlines()
    more = [f"... and {len(lines) - ROWS} lines more"] if len(lines) > ROWS else []
    return f"<b>{escape(title)}</b><pre>{escape(chr(10).join(lines[:ROWS] + more))}</pre>"
