"""Questions about the machine, which the compiler takes as answered instead of tracing how."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Question = TypeVar("Question", bound=Callable)


def compiled_constant(question: Question) -> Question:
    """`question`, called once while a graph is traced; its answer is part of the graph. Arguments are numbers and strings.

    What torch.compiler.assume_constant_result does, without importing the compiler, which takes seconds.
    """
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return question
