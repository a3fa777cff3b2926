"""The OpenAI-shaped API that both ends share: requests, errors, event streams. No I/O."""
