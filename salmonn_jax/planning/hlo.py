"""Parser of optimised HLO text: FLOPs of matrix products, and collectives with their number of executions.

XLA's cost analysis counts the body of a loop once. This module multiplies it by the loop's trip count.
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
    """One HLO instruction.

    Attributes:
      name: name within its computation.
      opcode: operation, such as "dot".
      shapes: (dtype, dimensions) of each result.
      operands: names of the operands.
      attributes: text of the instruction, in which attributes are searched.
    """

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        """Returns the size of the results in bytes."""
        return sum(math.prod(dims) * _BYTES.get(dtype, 0) for dtype, dims in self.shapes)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collective instruction of a program.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: size of the result on one device; for a reduce-scatter, size of the operands.
      times: number of executions in one execution of the program.
      source: `op_name` of the instruction: the JAX operations from which it comes.
    """

    kind: str
    bytes: int
    times: int
    source: str


def collectives(text: str) -> list[Collective]:
    """Returns all collectives of a compiled module. `text` is its optimised HLO."""
    result = []
    for instruction, times, shapes in _walk(text):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if kind == "reduce-scatter":
            size = sum(_size(shapes.get(name, ())) for name in instruction.operands)
        elif instruction.opcode.endswith("-start"):  # its result is a pair of operand and result
            size = instruction.bytes // 2
        else:
            size = instruction.bytes
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        result.append(Collective(kind, size, times, source[1] if source else ""))
    return result


def dot_flops(text: str) -> int:
    """Returns the FLOPs of all matrix products and convolutions. A multiply-add counts as two.

    Only for modules compiled for CPU. The TPU compiler turns batched products into convolutions, whose FLOPs this
    function overestimates.
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
    """Yields each executed instruction, its number of executions, and the result shapes of its computation by name."""
    computations, entry = _parse(text)

    def visit(name: str, times: int) -> Iterator:
        """Yields the instructions of a computation that runs `times` times, and those of the computations it calls."""
        body = computations.get(name, [])
        shapes = {instruction.name: instruction.shapes for instruction in body}
        for instruction in body:
            yield instruction, times, shapes
            if instruction.opcode == "while":
                inner = _called_computation(instruction.attributes, "body")
                trip_count = _trip_count(
                    instruction.attributes,
                    computations.get(_called_computation(instruction.attributes, "condition"), []),
                )
                yield from visit(inner, times * trip_count)
            else:
                for attribute in ("calls", "to_apply", "called_computations"):
                    called = _called_computation(instruction.attributes, attribute)
                    if called and instruction.opcode in ("fusion", "call", "async-start", "custom-call"):
                        yield from visit(called, times)

    yield from visit(entry, 1)


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation by name, and the name of the entry computation."""
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
    """Parses one instruction. `text` follows its " = "."""
    # Layouts such as {1,0:T(8,128)} contain parentheses, and comments contain commas.
    text = re.sub(r"/\*[^*]*\*/", "", text)
    text_without_layouts = re.sub(r"\{[^{}]*\}", "", text[: text.find("metadata=")] if "metadata=" in text else text)
    opcode = _OPCODE.search(text_without_layouts)
    result_text = text_without_layouts[: opcode.start()] if opcode else text_without_layouts
    shapes = tuple((d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _SHAPE.findall(result_text))
    operand_text = text_without_layouts[opcode.end() :].split(")")[0] if opcode else ""
    operand_parts = re.split(r",\s*(?![\d,]*\])", operand_text)
    operands = tuple(part.split()[-1].lstrip("%") for part in operand_parts if part.split())
    return Instruction(name, opcode[1] if opcode else "", shapes, operands, text)


def _size(shapes: tuple) -> int:
    """Returns the bytes of arrays with these (dtype, dimensions)."""
    return sum(math.prod(dims) * _BYTES.get(dtype, 0) for dtype, dims in shapes)


def _called_computation(attributes: str, attribute: str) -> str | None:
    """Returns the name of the computation that an attribute such as `body` refers to."""
    match = re.search(rf"\b{attribute}=\{{?%?([\w.\-]+)", attributes)
    return match[1] if match else None


def _trip_count(attributes: str, condition: list[Instruction]) -> int:
    """Returns the trip count of a loop, as annotated by XLA.

    Without an annotation, returns the constant in the loop's condition, or 1 if the condition has no single constant.
    """
    known_trip_count = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', attributes)
    if known_trip_count:
        return int(known_trip_count[1])
    limits = [
        int(m[1]) for i in condition if i.opcode == "constant" and (m := re.search(r"constant\((\d+)\)", i.attributes))
    ]
    return limits[0] if len(limits) == 1 else 1
