"""A graph before and after passes as one SVG picture.

A box a node, in their order; a line goes down from each value, left of the boxes, to all that take it. Weights are not
drawn, and the parts of what gives several values are their whole.
"""

import operator
from collections.abc import Callable
from xml.sax.saxutils import escape

from torch import Tensor, fx

COLOURS = {
    "placeholder": "#cfe8cf",
    "call_function": "#cfdcf2",
    "call_method": "#dccff2",
    "call_module": "#f2e3cf",
    "output": "#cfe8cf",
}
FUSED = "#f2b8b8"
LEGEND = ((COLOURS["output"], "in, out"), (COLOURS["call_function"], "operator"), (FUSED, "fused"))
LINES = ("#30638e", "#b5541c", "#3a7d44", "#7b4ea3", "#a3333d", "#56707a")
ROW, HEIGHT, WIDTH, LANE, GAP, TOP = 24, 18, 300, 7, 24, 54
TEXT = 46  # letters that a box has room for


def draw(title: str, before: fx.GraphModule, after: fx.GraphModule, is_fused: Callable[[fx.Node], bool]) -> str:
    """SVG text: before at the left, after at the right, fused operators in red."""
    columns, left = [], GAP
    for name, graph_module in (("before", before), ("after", after)):
        column = _Column(graph_module, left, is_fused)
        columns.append(column.draw(f"{name}: {len(graph_module.graph.nodes)} nodes, {len(column.rows)} of them drawn"))
        left = column.boxes + WIDTH + GAP
    height = TOP + ROW * max(len(_drawn(g)) for g in (before, after)) + GAP
    head = f'<text x="{GAP}" y="18" font-weight="bold">{escape(title)}</text>'
    for i, (colour, of) in enumerate(LEGEND):
        x = left - GAP - 100 * (len(LEGEND) - i)
        head += f'<path d="M{x} 9h12v12h-12z" fill="{colour}"/><text x="{x + 18}" y="19">{of}</text>'
    paper = f'<path d="M0 0H{left}V{height}H0z" fill="#fff"/>'
    size = f'width="{left}" height="{height}" viewBox="0 0 {left} {height}"'
    body = paper + head + "".join(columns)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="11">{body}</svg>'


def _drawn(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in graph_module.graph.nodes if n.op != "get_attr" and n.target is not operator.getitem]


def _whole(node: fx.Node) -> fx.Node:
    while node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


class _Column:
    """One graph; rows: which row each drawn node is in; boxes: where boxes begin, right of all lines."""

    def __init__(self, graph_module: fx.GraphModule, left: int, is_fused: Callable[[fx.Node], bool]) -> None:
        self.is_fused = is_fused
        self.rows = {node: i for i, node in enumerate(_drawn(graph_module))}
        takers: dict[fx.Node, set[int]] = {}
        for node, row in self.rows.items():
            for source in map(_whole, node.all_input_nodes):
                if source in self.rows:
                    takers.setdefault(source, set()).add(row)
        self.takers = {node: sorted(takers[node]) for node in self.rows if node in takers}
        free: list[int] = []  # the row that each lane is taken up to
        self.lanes: dict[fx.Node, int] = {}
        for node, rows in self.takers.items():
            if rows == [self.rows[node] + 1]:
                continue  # a line straight down
            lane = next((i for i, until in enumerate(free) if until < self.rows[node]), len(free))
            free[lane : lane + 1] = [rows[-1]]
            self.lanes[node] = lane
        self.boxes = left + LANE * (len(free) + 1)

    def draw(self, title: str) -> str:
        lines = "".join(self._line(node) for node in self.takers)
        text = f'<text x="{self.boxes}" y="{TOP - 12}" font-weight="bold">{title}</text>'
        return text + lines + "".join(self._box(node, row) for node, row in self.rows.items())

    def _line(self, node: fx.Node) -> str:
        middle = [TOP + ROW * row + HEIGHT / 2 for row in (self.rows[node], *self.takers[node])]
        if node not in self.lanes:
            return f'<path d="M{self.boxes + 12} {middle[0]}V{middle[1]}" stroke="#888"/>'
        lane = self.boxes - LANE * (self.lanes[node] + 1)
        path = f"M{self.boxes} {middle[0] + 4}H{lane}V{middle[-1] - 4}"
        path += "".join(f"M{lane} {y - 4}H{self.boxes}" for y in middle[1:])
        return f'<path d="{path}" fill="none" stroke="{LINES[self.lanes[node] % len(LINES)]}"/>'

    def _box(self, node: fx.Node, row: int) -> str:
        y = TOP + ROW * row
        colour = FUSED if self.is_fused(node) else COLOURS[node.op]
        label, shape = _label(node), _shape(node)
        if len(label) + len(shape) >= TEXT:
            label = label[: TEXT - len(shape) - 2] + "…"
        return (
            f'<g><title>{escape(node.name)}</title><rect x="{self.boxes}" y="{y}" width="{WIDTH}" height="{HEIGHT}"'
            f' fill="{colour}"/><text x="{self.boxes + 4}" y="{y + 13}">{escape(label)}</text><text fill="#555"'
            f' x="{self.boxes + WIDTH - 4}" y="{y + 13}" text-anchor="end">{escape(shape)}</text></g>'
        )


def _label(node: fx.Node) -> str:
    """The operator, the module's path, or the name of what comes in or goes out."""
    if node.op in ("call_module", "call_method"):
        return str(node.target)
    if node.op != "call_function":
        return node.name
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return f"({', '.join(map(str, value.shape))})" if isinstance(value, Tensor) else ""
