"""What a compiled program does, read from its text: matrix multiplications and collectives, with how often they run.

XLA's own cost analysis counts the body of a loop once; here the trip counts of scans are multiplied in.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][\w-]*)\(")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `shapes` are those of what it yields, `operands` names, `rest` its attributes."""

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        return sum(math.prod(dims) * _BYTES.get(dtype, 0) for dtype, dims in self.shapes)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of what it yields, on one device; for reduce-scatter of what it takes.
      times: how often it runs in one execution of the program.
      source: where in the program it comes from.
    """

    kind: str
    bytes: int
    times: int
    source: str


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled module that move anything."""
    found = []
    for instruction, times, shapes in _walk(text):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if kind == "reduce-scatter":
            size = sum(_size(shapes.get(name, ())) for name in instruction.operands)
        elif instruction.opcode.endswith("-start"):  # yields what it takes, too
            size = instruction.bytes // 2
        else:
            size = instruction.bytes
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        found.append(Collective(kind, size, times, source[1] if source else ""))
    return found


def dot_flops(text: str) -> int:
    """Floating-point operations of all matrix products and convolutions, a multiply and an add counted as two.

    For modules compiled for CPU: on TPU the compiler writes batched products as convolutions, which this overcounts.
    """
    total = 0
    for instruction, times, shapes in _walk(text):
        out = math.prod(instruction.shapes[0][1]) if instruction.shapes else 0
        if instruction.opcode == "dot":
            (_, left), *_ = shapes[instruction.operands[0]]
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
            total += times * 2 * out * math.prod(left[int(i)] for i in contracted.split(",") if i)
        elif instruction.opcode == "convolution":
            (_, kernel), *_ = shapes[instruction.operands[1]]
            labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)[1]
            total += times * 2 * out * math.prod(n for n, label in zip(kernel, labels, strict=True) if label != "o")
    return total


def _walk(text: str) -> Iterator[tuple[Instruction, int, dict[str, tuple]]]:
    """Every instruction that runs, how often, and the shapes of what its computation has yielded."""
    computations, entry = _parse(text)

    def visit(name: str, times: int) -> Iterator:
        body = computations.get(name, [])
        shapes = {instruction.name: instruction.shapes for instruction in body}
        for instruction in body:
            yield instruction, times, shapes
            if instruction.opcode == "while":
                inner = _called_computation(instruction.attributes, "body")
                trips = _trip_count(
                    instruction.attributes,
                    computations.get(_called_computation(instruction.attributes, "condition"), []),
                )
                yield from visit(inner, times * trips)
            else:
                for attribute in ("calls", "to_apply", "called_computations"):
                    called = _called_computation(instruction.attributes, attribute)
                    if called and instruction.opcode in ("fusion", "call", "async-start", "custom-call"):
                        yield from visit(called, times)

    yield from visit(entry, 1)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{") and "(" in line:
            head = line.removeprefix("ENTRY ").lstrip("%")
            current = computations.setdefault(re.split(r"[ (]", head, maxsplit=1)[0], [])
            if line.startswith("ENTRY "):
                entry = re.split(r"[ (]", head, maxsplit=1)[0]
        elif current is not None and (matched := _INSTRUCTION.match(line)):
            current.append(_instruction(matched[1], matched[2]))
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    # Layouts such as {1,0:T(8,128)} hold parentheses, and comments commas.
    text = re.sub(r"/\*[^*]*\*/", "", text)
    plain = re.sub(r"\{[^{}]*\}", "", text[: text.find("metadata=")] if "metadata=" in text else text)
    opcode = _OPCODE.search(plain)
    yielded = plain[: opcode.start()] if opcode else plain
    shapes = tuple((d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _SHAPE.findall(yielded))
    inside = plain[opcode.end() :].split(")")[0] if opcode else ""
    operands = tuple(part.split()[-1].lstrip("%") for part in re.split(r",\s*(?![\d,]*\])", inside) if part.split())
    return Instruction(name, opcode[1] if opcode else "", shapes, operands, text)


def _size(shapes: tuple) -> int:
    return sum(math.prod(dims) * _BYTES.get(dtype, 0) for dtype, dims in shapes)


def _called_computation(attributes: str, attribute: str) -> str | None:
    found = re.search(rf"\b{attribute}=\{{?%?([\w.\-]+)", attributes)
    return found[1] if found else None


def _trip_count(attributes: str, condition: list[Instruction]) -> int:
    """How often a loop runs: as XLA noted it, else as its condition compares a counter that begins at zero."""
    noted = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', attributes)
    if noted:
        return int(noted[1])
    limits = [
        int(m[1]) for i in condition if i.opcode == "constant" and (m := re.search(r"constant\((\d+)\)", i.attributes))
    ]
    return limits[0] if len(limits) == 1 else 1
