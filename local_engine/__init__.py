"""The embedded engine: a process of its own that speaks the part of SGLang's HTTP protocol that the server uses.

For tiny models on a CPU, and small ones on a GPU. Imports nothing of the server; the server's client and one contract
suite serve both.

    app           routes, errors          service       what endpoints share: adapters, sequences in flight
    chat          /v1/chat/completions    prompts       messages to prompt tokens
    generation    /generate               tool_calls    calls out of answers
    answer_shapes what a request forces   grammars      which tokens that allows
    decoder       the decoding thread     text          tokens to text, stop strings
    running_batch rows that decode together, on kv_rows, prefixes, sampling, linear
    models        the base, and one folded copy an adapter
"""
