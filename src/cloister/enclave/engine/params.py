"""llama.cpp's parameters for a replica: nothing cached between requests, nothing shown, nothing fetched.

Imported only where llama.cpp runs.
"""

from __future__ import annotations

from collections.abc import Mapping

import xllamacpp


def llama_params(config: Mapping[str, int | str], model_path: str) -> xllamacpp.CommonParams:
    """Parameters for `model_path` from a resolved configuration (engine.config.ResolvedConfig as a mapping).

    Every value has been range-checked: some bad ones abort the process. The caller sets the listener.
    """
    params = xllamacpp.CommonParams()
    params.model.path = model_path
    params.model_alias = {str(config["model_id"])}
    # The default, 0, would take the training context: gigabytes for some models.
    params.n_ctx = int(config["context"]) * int(config["slots"])
    params.n_parallel = int(config["slots"])
    # Cancellation during a prompt is only looked for between batches.
    params.n_batch = params.n_ubatch = int(config["batch"])
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(config["threads"])
    # Off is faster for decoding on CPUs.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.fit_params = False
    params.no_extra_bufts = bool(config["one_copy"])
    # A cached prefix would tell one tenant what it shares with another.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.slot_prompt_similarity = 0.0
    params.n_cache_reuse = 0
    params.n_ctx_checkpoints = 0
    params.ctx_shift = False
    params.verbosity = 0
    params.ui = False
    params.endpoint_slots = False
    params.endpoint_props = False
    params.endpoint_metrics = False
    params.warmup = True
    params.offline = True
    return params
