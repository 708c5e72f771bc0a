"""Suggestions for settings that do not exist: other programs' names of ours, and what no run here has."""

from __future__ import annotations

from collections.abc import Sequence

from harness.text import nearest

# What other programs call a setting: Hugging Face, Megatron-LM, torchtitan, nanoGPT, litgpt.
SYNONYMS = {
    "workload.learning_rate": "lr max_lr base_lr peak_lr lrate",
    "workload.min_lr_ratio": "min_lr lr_min_ratio lr_decay_ratio final_lr",
    "workload.lr_warmup_steps": "warmup warmup_steps warmup_iters lr_warmup lr_warmup_iters num_warmup_steps "
    "warmup_ratio",
    "workload.global_batch_size": "batch batch_size bs train_batch_size gbs total_batch_size",
    "workload.micro_batch_size": "micro_batch mbs per_device_train_batch_size per_device_batch_size device_batch_size "
    "local_batch_size accumulation gradient_accumulation_steps grad_accum gradient_accumulation",
    "workload.steps": "max_steps iters max_iters num_steps train_steps train_iters num_iterations epochs "
    "num_train_epochs num_epochs max_epochs",
    "workload.seq_len": "block_size context context_length max_seq_len seq_length sequence_length max_length",
    "workload.max_grad_norm": "clip grad_clip clip_grad gradient_clipping clip_grad_norm max_norm",
    "workload.weight_decay": "wd decay",
    "workload.epsilon": "eps adam_eps adam_epsilon",
    "workload.beta1": "adam_beta1 momentum betas",
    "workload.beta2": "adam_beta2",
    "workload.interval_steps": "log_every log_interval logging_steps log_freq",
    "workload.eval_every": "eval_steps eval_interval eval_iters eval_freq",
    "model.num_hidden_layers": "layers n_layer n_layers num_layers depth",
    "model.num_attention_heads": "heads n_head n_heads num_heads",
    "model.num_key_value_heads": "kv_heads n_kv_heads num_kv_heads num_query_groups",
    "model.hidden_size": "width dim d_model n_embd embed_dim embedding_dim hidden",
    "model.intermediate_size": "ffn_hidden_size ffn_dim hidden_dim d_ff mlp_dim moe_intermediate_size "
    "moe_ffn_hidden_size moe_inter_dim",
    "model.num_experts": "experts n_experts moe num_local_experts n_routed_experts num_moe_experts",
    "model.num_experts_per_tok": "top_k moe_top_k experts_per_token moe_router_topk n_activated_experts",
    "model.routing": "router router_type force_load_balance moe_router_force_load_balancing debug_force_load_balance",
    "model.vocab_size": "vocab vocabulary_size padded_vocab_size",
    "model.tie_word_embeddings": "tied_embeddings tie_embeddings weight_tying",
    "model.activation_checkpointing": "gradient_checkpointing recompute activation_recompute recompute_granularity",
    "precision": "fp16 bf16 amp mixed_precision torch_dtype param_dtype dtype compute_dtype",
    "backend": "device gpu accelerator device_type platform",
    "out": "output_dir save_dir out_dir log_dir output outdir",
    "seed": "random_seed manual_seed",
    "resume": "resume_from resume_from_checkpoint load init_from",
    "checkpoint.every": "save_steps save_every save_interval checkpoint_interval",
    "data.path": "dataset data_dir data_path train_data train_file corpus",
    "track.adamw": "optimizer optim fused_adam",
    "track.compile": "torch_compile jit",
    "track.attention": "flash flash_attention flash_attn attn_implementation use_flash_attention",
    "parallel": "fsdp ddp zero zero_stage sharding strategy distributed deepspeed",
}
# Settings of other programs that stand for what no run here has.
ABSENT = {
    **dict.fromkeys(
        ("dropout", "attention_dropout", "hidden_dropout", "resid_dropout", "attn_pdrop", "embd_pdrop"),
        "the models have no dropout, so that every device computes the same",
    ),
    **dict.fromkeys(
        ("n_shared_experts", "num_shared_experts", "shared_experts", "first_k_dense_replace", "mlp_only_layers"),
        "all blocks of a mixture have the same experts, and none that all tokens use",
    ),
    **dict.fromkeys(
        ("router_aux_loss_coef", "aux_loss_alpha", "moe_aux_loss_coeff", "capacity_factor", "expert_capacity"),
        "no loss balances experts, and no token is dropped; model.routing=round_robin gives them equal loads",
    ),
    **dict.fromkeys(
        (
            "ep",
            "expert",
            "expert_parallelism",
            "expert_parallel",
            "expert_parallel_size",
            "expert_model_parallel_size",
            "expert_parallel_degree",
        ),
        "use parallel=mesh with parallel.tensor, over whose ranks experts are spread",
    ),
    **dict.fromkeys(
        (
            "tp",
            "pp",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "tensor_parallel_degree",
            "pipeline_parallel_degree",
        ),
        "use parallel=mesh with parallel.tensor and parallel.pipeline",
    ),
    "hybrid_shard": "use parallel.shard: the number of shards, with replicas on the rest",
    **dict.fromkeys(
        ("gpus", "num_gpus", "devices", "n_gpus", "world_size", "nproc", "nproc_per_node", "num_processes"),
        "the launcher starts the processes: python -m harness torchrun --nproc-per-node=N",
    ),
}


def setting_hint(key: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown setting: what other programs call so, else the nearest spelling."""
    name = key.rsplit(".", 1)[-1].casefold().replace("-", "_")
    if name in ABSENT:
        return f": {ABSENT[name]}"
    tails = {each.rsplit(".", 1)[-1]: each for each in known}
    meant = next((each for each, names in SYNONYMS.items() if name in names.split()), None) or tails.get(name)
    if meant is None:
        near = nearest(name, tails, cutoff=0.75)
        meant = nearest(key, known, cutoff=0.75) or (None if near is None else tails[near])
    return "" if meant is None else f"; did you mean {meant}?"
