"""smolagents with its unmodified E2B executor: an agent whose model follows a script solves a task with code and a plot.

The executor installs packages with `pip` in the sandbox before the first step: those of the authorized imports, and those
of its own final answer. The template has them all, so `pip` needs no network.
"""

from collections.abc import Iterator

import PIL.Image
import pytest
from smolagents import ChatMessage, CodeAgent, MessageRole, Model, Tool

TASK = "How many prime numbers are below `limit`? Show their distances."

COUNT = """
import numpy as np
sieve = np.ones(limit, dtype=bool)
sieve[:2] = False
for number in range(2, int(limit ** 0.5) + 1):
    sieve[number * number :: number] = False
primes = np.flatnonzero(sieve)
print(describe(str(len(primes))))
"""
MISTAKE = "prims[0]"
PLOT = """
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.plot(primes[1:], np.diff(primes), label="distances")
ax.set_title("Distances of primes")
fig
"""
ANSWER = """
import io
from PIL import Image
buffer = io.BytesIO()
fig.savefig(buffer, format="png")
final_answer({"count": len(primes), "plot": Image.open(buffer)})
"""


class Describe(Tool):
    """Tool whose source the executor sends to the sandbox."""

    name = "describe"
    description = "Describes a number of primes."
    inputs = {"number": {"type": "string", "description": "the number"}}
    output_type = "string"

    def forward(self, number: str) -> str:
        return f"There are {number} primes."


class Script(Model):
    """Model that replies with one piece of code after the other, and stores what the agent reported in between."""

    def __init__(self, steps: list[str]):
        super().__init__(model_id="script")
        self.steps = list(steps)
        self.seen: list[str] = []

    def generate(self, messages, **options) -> ChatMessage:
        self.seen.append(str(messages[-1].content))
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: next\n<code>\n{self.steps.pop(0)}\n</code>")


@pytest.fixture
def model() -> Script:
    return Script([COUNT, MISTAKE, PLOT, ANSWER])


@pytest.fixture
def agent(model: Script) -> Iterator[CodeAgent]:
    with CodeAgent(
        tools=[Describe()],
        model=model,
        executor_type="e2b",
        additional_authorized_imports=["numpy", "matplotlib"],
        executor_kwargs={"timeout": 600},
    ) as agent:
        yield agent


def test_an_agent_solves_a_task_with_code_and_a_plot(agent, model):
    answer = agent.run(TASK, additional_args={"limit": 1000})
    assert answer["count"] == 168
    assert isinstance(answer["plot"], PIL.Image.Image) and min(answer["plot"].size) >= 100
    _, counted, failed, plotted = model.seen
    assert "There are 168 primes." in counted
    assert "NameError" in failed and "name 'prims' is not defined" in failed
    steps = [step for step in agent.memory.steps if getattr(step, "code_action", None)]
    assert [bool(step.error) for step in steps] == [False, True, False, False]
    # The figure is the last expression of its step, so the executor returns it as a picture.
    assert isinstance(steps[2].action_output, PIL.Image.Image), plotted
