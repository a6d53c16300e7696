"""A scenario's traffic on its plan, whatever its model does: inferences or generations."""

from scheduler.plan import Plan
from simulator.generation_report import GenerationServingReport
from simulator.serving_report import ServingReport
from ui.generation_traffic import serve_generations
from ui.prepare import Prepared
from ui.scenario import Scenario
from ui.steps import Steps
from ui.traffic import serve_traffic

AnyServing = ServingReport | GenerationServingReport


def serve(scenario: Scenario, stated: Prepared, chosen: Plan, steps: Steps) -> AnyServing:
    """Simulate the traffic on servers of the stated problem; generations run the chosen plan.

    Raises:
        InfeasibleError: a server has no room.
        ValueError: the scenario asks for what its servers lack.
    """
    if scenario.model.mode == "generation":
        return serve_generations(scenario, stated, chosen, steps)
    return serve_traffic(scenario, stated, steps)
