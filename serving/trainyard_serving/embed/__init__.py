"""The embedding server: OpenAI's /v1/embeddings, and /embed of Text Embeddings Inference.

A request passes through these modules:

    app.py            routes: limits, model name, the JSON of the answer
    requests.py       the validated requests
    settings.py       the server's settings
    embedder.py       one model: loading and checking; texts -> token ids -> embeddings
      pooling.py          what a model's files say of how its hidden states become an embedding
"""
