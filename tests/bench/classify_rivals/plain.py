"""Plain FastAPI that calls PyTorch in the request handler. Arguments: model directory, port."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench.classify_rivals.model import Model

model = Model(sys.argv[1])
app = FastAPI()


class Body(BaseModel):
    text: str


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/predict")
async def predict(body: Body) -> dict[str, Any]:
    return model.predict([body.text])[0]


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
