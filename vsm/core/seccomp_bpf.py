"""Seccomp rules → classic BPF → an answer. Pure: no kernel is needed to test a policy.

`compile_filter` makes a binary tree over ranges of call numbers. A call that is allowed whatever
its arguments is decided by its number alone, so the kernel (5.11 and later) answers it from a
bitmap and never runs the tree. Sources: linux/seccomp.h, linux/filter.h, linux/audit.h.
"""

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vsm.core.syscalls import names, numbers

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}

_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_GREATER_OR_EQUAL = 0x20, 0x05, 0x15, 0x35
_AND, _RETURN = 0x54, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_NEAR = 250
_LOW = 0xFFFF_FFFF
_INSTRUCTION = struct.Struct("<HBBI")
_CALL = struct.Struct("<IIQ6Q")


class Action(enum.IntEnum):
    """SECCOMP_RET_* with the errno in its low half; NOTIFY asks whoever holds the listener."""

    ALLOW = 0x7FFF_0000
    NOTIFY = 0x7FC0_0000
    EPERM = 0x0005_0000 | 1
    ENOSYS = 0x0005_0000 | 38
    KILL_PROCESS = 0x8000_0000


@dataclass(frozen=True)
class Comparison:
    """`arguments[index] & mask == value`; a mask of 32 bits ignores what the kernel ignores."""

    index: int
    value: int
    mask: int = _LOW

    def holds(self, arguments: Sequence[int]) -> bool:
        """Whether these arguments pass."""
        return arguments[self.index] & self.mask == self.value


@dataclass(frozen=True)
class Clause:
    """An action for calls that pass every test."""

    tests: tuple[Comparison, ...]
    action: Action


@dataclass(frozen=True)
class ArgumentFilter:
    """The first clause that passes decides, else `otherwise`."""

    clauses: tuple[Clause, ...]
    otherwise: Action

    def decide(self, arguments: Sequence[int]) -> Action:
        """The action for these arguments."""
        for clause in self.clauses:
            if all(test.holds(arguments) for test in clause.tests):
                return clause.action
        return self.otherwise


Decision = Action | ArgumentFilter


@dataclass(frozen=True)
class Rules:
    """A policy by names.

    Args:
        decisions: what happens to each named call.
        default: for calls of the table that are not named.
        absent: for numbers that the table does not know, x32's among them.
    """

    decisions: Mapping[str, Decision]
    default: Action = Action.EPERM
    absent: Action = Action.ENOSYS

    def evaluate(self, arch: str, number: int, arguments: Sequence[int]) -> Action:
        """The answer without BPF: what the compiled filter has to agree with."""
        name = names(arch).get(number)
        if name is None:
            return self.absent
        decision = self.decisions.get(name, self.default)
        return decision if isinstance(decision, Action) else decision.decide(arguments)


def compile_filter(rules: Rules, arch: str = "x86_64") -> bytes:
    """An array of struct sock_filter; a call through another architecture's entry kills."""
    assembler = _Assembler()
    ranges = _ranges(rules, arch)
    tree = assembler.tree(ranges)
    assembler.load(_NUMBER_OFFSET, tree)
    start = assembler.position
    foreign = assembler.answer(Action.KILL_PROCESS)
    assembler.branch(_JUMP_EQUAL, AUDIT_ARCH[arch], start, foreign)
    assembler.load(_ARCH_OFFSET, assembler.position)
    return assembler.program()


def replace_answer(program: bytes, old: Action, new: Action) -> bytes:
    """The same filter with another answer where it had `old`."""
    returns = (_RETURN, 0, 0, old)
    return b"".join(
        _INSTRUCTION.pack(*(_RETURN, 0, 0, new) if instruction == returns else instruction)
        for instruction in _INSTRUCTION.iter_unpack(program)
    )


def simulate(program: bytes, arch: str, nr: int, args: Sequence[int]) -> Action:
    """Run the filter as the kernel would.

    Raises:
        ValueError: the program is malformed: it jumps out of its end or does not return.
    """
    arguments = [*args, 0, 0, 0, 0, 0, 0][:6]
    call = _CALL.pack(nr & _LOW, AUDIT_ARCH[arch], 0, *(a & (2**64 - 1) for a in arguments))
    code = list(_INSTRUCTION.iter_unpack(program))
    accumulator = at = 0
    while at < len(code):
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == _RETURN:
            return Action(operand)
        if operation == _LOAD:
            (accumulator,) = struct.unpack_from("<I", call, operand)
        elif operation == _AND:
            accumulator &= operand
        elif operation == _JUMP:
            at += operand
        elif operation == _JUMP_EQUAL:
            at += if_true if accumulator == operand else if_false
        elif operation == _JUMP_GREATER_OR_EQUAL:
            at += if_true if accumulator >= operand else if_false
        else:
            raise ValueError(f"unknown instruction {operation:#x}")
    raise ValueError("the filter runs over its end")


def _ranges(rules: Rules, arch: str) -> list[tuple[int, Decision]]:
    """(first number, decision) with neighbours of the same decision merged."""
    by_number = {
        number: rules.decisions.get(name, rules.default) for name, number in numbers(arch).items()
    }
    ranges: list[tuple[int, Decision]] = []
    for number in range(max(by_number) + 2):
        decision = by_number.get(number, rules.absent)
        if not ranges or ranges[-1][1] != decision:
            ranges.append((number, decision))
    return ranges


@dataclass
class _Assembler:
    """Writes the program backwards: BPF only jumps forwards, so every target is known.

    A position counts from the program's end. Answers are repeated where the last one is too far
    for a conditional jump's eight bits.
    """

    code: list[tuple[int, int, int, int]] = field(default_factory=list)
    answers: dict[Action, int] = field(default_factory=dict)

    @property
    def position(self) -> int:
        """The instruction written last, which runs first."""
        return len(self.code) - 1

    def program(self) -> bytes:
        """The bytes in running order."""
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in reversed(self.code))

    def answer(self, action: Action) -> int:
        """A return of `action` within reach."""
        known = self.answers.get(action)
        if known is None or len(self.code) - known > _NEAR // 2:
            self.code.append((_RETURN, 0, 0, action))
            known = self.answers[action] = self.position
        return known

    def load(self, offset: int, then: int) -> int:
        """Load a word of struct seccomp_data; what follows must be the code at `then`."""
        self._fall_through(then)
        self.code.append((_LOAD, 0, 0, offset))
        return self.position

    def branch(self, operation: int, operand: int, if_true: int, if_false: int) -> int:
        """Compare the accumulator and go to one of two positions."""
        if_true = self._near(if_true)
        if_false = self._near(if_false)
        here = self.position
        self.code.append((operation, here - if_true, here - if_false, operand))
        return self.position

    def tree(self, ranges: Sequence[tuple[int, Decision]]) -> int:
        """A binary search of the number in the accumulator."""
        if len(ranges) == 1:
            decision = ranges[0][1]
            return self.answer(decision) if isinstance(decision, Action) else self.filter(decision)
        middle = len(ranges) // 2
        above = self.tree(ranges[middle:])
        below = self.tree(ranges[:middle])
        return self.branch(_JUMP_GREATER_OR_EQUAL, ranges[middle][0], above, below)

    def filter(self, decision: ArgumentFilter) -> int:
        """The clauses of an argument filter; it always returns, the number may be overwritten."""
        following = self.answer(decision.otherwise)
        for clause in reversed(decision.clauses):
            passed = self.answer(clause.action)
            for test in reversed(clause.tests):
                passed = self._test(test, passed, following)
            following = passed
        return following

    def _test(self, test: Comparison, passed: int, failed: int) -> int:
        # Little-endian: the low half is at the lower address.
        for half, shift in ((4, 32), (0, 0)):
            mask, value = test.mask >> shift & _LOW, test.value >> shift & _LOW
            if mask == 0:
                continue
            passed = self.branch(_JUMP_EQUAL, value, passed, failed)
            if mask != _LOW:
                self.code.append((_AND, 0, 0, mask))
                passed = self.position
            passed = self.load(_ARGUMENTS_OFFSET + 8 * test.index + half, passed)
        return passed

    def _near(self, target: int) -> int:
        if len(self.code) - target <= _NEAR:
            return target
        self.code.append((_JUMP, 0, 0, self.position - target))
        return self.position

    def _fall_through(self, target: int) -> None:
        if target != self.position:
            self.code.append((_JUMP, 0, 0, self.position - target))
