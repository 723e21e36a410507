"""Names of our settings in other trainers, for hints."""

#: Our setting, and its names in transformers, PEFT, TRL, Lightning and W&B.
FOREIGN = {
    "optim.lr": "lr learning_rate base_lr peak_lr max_lr",
    "optim.epochs": "epochs max_epochs num_train_epochs num_epochs n_epochs max_steps num_steps train_steps",
    "optim.early_stopping": "early_stopping early_stopping_patience patience",
    "optim.global_batch_size": "batch_size train_batch_size per_device_train_batch_size global_batch_size"
    " accumulate_grad_batches gradient_accumulation_steps grad_accum",
    "optim.max_tokens_per_microbatch (examples a step are optim.global_batch_size)": "micro_batch_size auto_find_batch_size"
    " max_tokens max_tokens_per_microbatch",
    "optim.schedule": "scheduler lr_scheduler lr_scheduler_type lr_schedule",
    "optim.warmup, a share of the steps": "warmup_ratio warmup_steps num_warmup_steps",
    "optim.grad_clip": "max_grad_norm gradient_clip_val clip_grad_norm grad_clip_norm gradient_clipping",
    "optim.weight_decay": "wd weight_decay",
    "data.eval_batch_size": "eval_batch_size per_device_eval_batch_size test_batch_size val_batch_size",
    "model.max_length": "max_length max_seq_length max_seq_len model_max_length max_source_length cutoff_len block_size",
    "benchmark.default.max_new_tokens": "max_new_tokens max_target_length generation_max_length max_tokens_to_generate",
    "model.dtype=bf16 (or fp32)": "bf16 fp16 torch_dtype dtype precision mixed_precision tf32",
    "model=hub model.name": "model_name model_name_or_path model_id model_path base_model base_model_name_or_path"
    " pretrained_model_name_or_path",
    "model.revision": "revision model_revision",
    "model.prompt": "template chat_template prompt_template",
    "model.system_prompt": "system system_message system_prompt",
    "adapter.rank": "r rank lora_r lora_rank",
    "adapter.alpha": "alpha lora_alpha",
    "adapter.dropout": "dropout lora_dropout",
    "adapter.targets": "targets target_modules lora_target lora_target_modules lora_modules",
    "order.tasks": "tasks task_list task_order datasets",
    "order": "dataset dataset_name benchmark_name",
    "train_size": "train_size max_train_samples num_train_samples max_num_instances_per_task limit_train",
    "test_size": "test_size max_test_samples max_eval_samples max_predict_samples limit_test",
    "valid_size": "valid_size val_size validation_size num_val_samples max_val_samples max_validation_samples",
    "ratio": "ratio replay_ratio rehearsal_ratio memory_ratio replay_rate data_memory",
    "seed": "seed random_seed data_seed manual_seed",
    "paths.runs": "output_dir out_dir save_dir default_root_dir logging_dir run_dir",
    "paths.cache": "cache_dir hf_home",
    "paths.data": "data_dir data_path dataset_dir data_root",
    "logger=wandb (or tensorboard, mlflow, csv)": "report_to log_with wandb tensorboard mlflow",
    "logger.name": "run_name",
    "logger.project": "project wandb_project",
    "trainer=ddp trainer.devices": "devices gpus num_gpus n_gpu num_processes nproc_per_node world_size",
    "trainer.num_nodes": "nodes nnodes num_nodes num_machines",
    "trainer": "device accelerator use_cpu no_cuda",
    "trainer=fsdp": "fsdp deepspeed zero_stage",
    "debug=fast": "fast_dev_run overfit_batches",
}


def called_here(key: str) -> str:
    """A hint naming the setting that users of other trainers know by another name, or nothing.

    >>> called_here("trainer.max_epochs")
    ' It is optim.epochs here.'
    """
    last = key.lstrip("+").rpartition(".")[2].lower().replace("-", "_")
    ours = next((ours for ours, theirs in FOREIGN.items() if last in theirs.split()), None)
    return f" It is {ours} here." if ours else ""
