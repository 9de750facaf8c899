"""The one in-process generator: sampling rules, KV cache, batched and streaming decoding."""
