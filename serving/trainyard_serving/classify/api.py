"""What requests and answers hold."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from trainyard_serving.classify.engine import Floats

MAX_CHARACTERS = 10_000
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class PredictRequest(BaseModel):
    """Body of POST /predict."""

    model_config = ConfigDict(strict=True)

    text: Text


class BatchRequest(BaseModel):
    """Body of POST /predict/batch."""

    model_config = ConfigDict(strict=True)

    texts: list[Text] = Field(min_length=1)


class Prediction(BaseModel):
    """The class of one text."""

    label: str
    confidence: float = Field(description="Probability of the label.")
    probs: dict[str, float] = Field(description="Probability of each class.")

    @classmethod
    def of(cls, labels: list[str], probabilities: Floats) -> "Prediction":
        """`probabilities` of shape (classes,)."""
        probs = dict(zip(labels, probabilities.tolist(), strict=True))
        label = max(probs, key=probs.__getitem__)
        return cls(label=label, confidence=probs[label], probs=probs)
