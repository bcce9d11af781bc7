"""lm-eval models: `DecoderLM` runs our decoder in this process, `AnsweredLM` gives answers found elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from pico.evaluation.answer import Answerer


class DecoderLM(LM):
    """Any lm-eval task on our decoder: `lm_eval.simple_evaluate(model=DecoderLM(answerer), tasks=[...])`."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__()
        self.answerer = answerer

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self.answerer.loglikelihood([request.args for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self.answerer.loglikelihood_rolling([request.args for request in requests])

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self.answerer.generate_until([request.args for request in requests])


class AnsweredLM(LM):
    """A model whose answers are known. The requests must be those that the answers were given to, in their order."""

    def __init__(self, requests: Mapping[str, Sequence[tuple]], answers: Mapping[str, Iterable[Any]]) -> None:
        """requests, answers: kind of request -> arguments, and what the model said to each."""
        super().__init__()
        self.known, self.answers = requests, answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [tuple(answer) for answer in self._look_up("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self._look_up("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._look_up("generate_until", requests)

    def _look_up(self, kind: str, requests: list[Instance]) -> list[Any]:
        if [tuple(request.args) for request in requests] != list(self.known[kind]):
            raise ValueError(f"the {kind} requests are not those that were answered")
        return list(self.answers[kind])
