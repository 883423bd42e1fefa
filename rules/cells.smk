# Later steps of a cell come first (`priority`), so that what is temporary is soon no longer needed.
rule fetch:
    output:
        train=f"data/{SCALE}/{{dataset}}/train.safetensors",
        validation=f"data/{SCALE}/{{dataset}}/validation.safetensors",
        test=f"data/{SCALE}/{{dataset}}/test.safetensors",
        manifest=f"data/{SCALE}/{{dataset}}/manifest.json",
    log:
        f"logs/{SCALE}/fetch/{{dataset}}.log",
    params:
        scale=SCALE,
        config=fetch_config,
    shell:
        "{PYTHON} -m stages.fetch --scale {params.scale} --dataset {wildcards.dataset} > {log} 2>&1"


rule baseline:
    input:
        train=f"data/{SCALE}/{{dataset}}/train.safetensors",
        validation=f"data/{SCALE}/{{dataset}}/validation.safetensors",
        manifest=f"data/{SCALE}/{{dataset}}/manifest.json",
    output:
        weights=saved(
            f"results/{SCALE}/checkpoints/{BASELINE}/final/weights.safetensors"
        ),
        plan=saved(f"results/{SCALE}/checkpoints/{BASELINE}/final/plan.json"),
        history=f"results/{SCALE}/cells/{BASELINE}/history.csv",
        record=f"results/{SCALE}/cells/{BASELINE}/baseline.json",
    log:
        f"logs/{SCALE}/{BASELINE}/baseline.log",
    priority: 1
    params:
        scale=SCALE,
        config=step_config("baseline"),
    shell:
        "IFAP_GPU={resources.gpu} {PYTHON} -m stages.baseline --scale {params.scale} --task {wildcards.task} --dataset {wildcards.dataset}"
        " --model {wildcards.model} --seed {wildcards.seed} > {log} 2>&1"


rule prune:
    input:
        train=f"data/{SCALE}/{{dataset}}/train.safetensors",
        validation=f"data/{SCALE}/{{dataset}}/validation.safetensors",
        weights=f"results/{SCALE}/checkpoints/{BASELINE}/final/weights.safetensors",
        plan=f"results/{SCALE}/checkpoints/{BASELINE}/final/plan.json",
        record=f"results/{SCALE}/cells/{BASELINE}/baseline.json",
        like=widths_of,
    output:
        weights=saved(f"results/{SCALE}/checkpoints/{CELL}/pruned/weights.safetensors"),
        plan=saved(f"results/{SCALE}/checkpoints/{CELL}/pruned/plan.json"),
        kept=f"results/{SCALE}/cells/{CELL}/plan.json",
        receipts=f"results/{SCALE}/cells/{CELL}/receipts.csv",
        full=f"results/{SCALE}/cells/{CELL}/receipts.json",
        flow=f"results/{SCALE}/cells/{CELL}/flow.json",
        record=f"results/{SCALE}/cells/{CELL}/prune.json",
    log:
        f"logs/{SCALE}/{CELL}/prune.log",
    priority: 2
    params:
        scale=SCALE,
        config=step_config("prune"),
    shell:
        "IFAP_GPU={resources.gpu} {PYTHON} -m stages.prune --scale {params.scale} --task {wildcards.task} --dataset {wildcards.dataset}"
        " --model {wildcards.model} --method {wildcards.method} --seed {wildcards.seed} > {log} 2>&1"


rule finetune:
    input:
        train=f"data/{SCALE}/{{dataset}}/train.safetensors",
        validation=f"data/{SCALE}/{{dataset}}/validation.safetensors",
        weights=f"results/{SCALE}/checkpoints/{CELL}/pruned/weights.safetensors",
        plan=f"results/{SCALE}/checkpoints/{CELL}/pruned/plan.json",
        record=f"results/{SCALE}/cells/{CELL}/prune.json",
    output:
        weights=saved(f"results/{SCALE}/checkpoints/{CELL}/final/weights.safetensors"),
        plan=saved(f"results/{SCALE}/checkpoints/{CELL}/final/plan.json"),
        history=f"results/{SCALE}/cells/{CELL}/history.csv",
        record=f"results/{SCALE}/cells/{CELL}/finetune.json",
    log:
        f"logs/{SCALE}/{CELL}/finetune.log",
    priority: 3
    params:
        scale=SCALE,
        config=step_config("finetune"),
    shell:
        "IFAP_GPU={resources.gpu} {PYTHON} -m stages.finetune --scale {params.scale} --task {wildcards.task} --dataset {wildcards.dataset}"
        " --model {wildcards.model} --method {wildcards.method} --seed {wildcards.seed} > {log} 2>&1"


# A baseline is made by its own rule; every other method is pruned and then fine-tuned.
ruleorder: baseline > finetune


rule evaluate:
    input:
        test=f"data/{SCALE}/{{dataset}}/test.safetensors",
        validation=f"data/{SCALE}/{{dataset}}/validation.safetensors",
        weights=f"results/{SCALE}/checkpoints/{CELL}/final/weights.safetensors",
        plan=f"results/{SCALE}/checkpoints/{CELL}/final/plan.json",
        records=final_records,
    output:
        metrics=f"results/{SCALE}/cells/{CELL}/metrics.json",
        record=f"results/{SCALE}/cells/{CELL}/evaluate.json",
    log:
        f"logs/{SCALE}/{CELL}/evaluate.log",
    priority: 4
    params:
        scale=SCALE,
        config=step_config("evaluate"),
    shell:
        "IFAP_GPU={resources.gpu} {PYTHON} -m stages.evaluate --scale {params.scale} --task {wildcards.task} --dataset {wildcards.dataset}"
        " --model {wildcards.model} --method {wildcards.method} --seed {wildcards.seed} > {log} 2>&1"
