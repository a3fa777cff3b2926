"""The inference engine: llama.cpp in a worker process of its own, behind a small protocol."""
