"""The text generation server: OpenAI's API over one language model.

A request passes through these modules:

    app.py            route: limits, model name, JSON or server-sent events
    openai_api.py     the validated request
      messages.py         the messages of a conversation, and tools
      response_format.py  the form of an answer: text, JSON, JSON of a schema
    tokenization.py   /tokenize and /detokenize
    info.py           /info
    engine.py         what the routes require of an engine; one of these answers:
    torch_engine.py       the model in this process
      language_model.py       loading and checking; one model with all that belongs to it
        prompts.py                text -> token ids, within bounds
        chat_template.py          messages and tools -> text
        grammar.py                a JSON schema -> the tokens that may come next
      worker.py               queue and thread; streams chunks of text back to the event loop
      batch.py                prefill and decode of several texts together
      token_model.py          token ids -> logits, with the key-value cache
      sampling.py             logits -> a token: penalties, temperature, filters, seeds
      logprobs.py             logits -> log-probabilities of tokens
      sequence.py             one text: sampled tokens -> final text, stop strings
      vocabulary.py           token ids -> the texts and bytes that log-probabilities show
    sglang_engine.py      an SGLang server
    openai_responses.py   the JSON of the response
"""
