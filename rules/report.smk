rule collect:
    input:
        METRICS,
        RECEIPTS,
    output:
        runs=f"results/{SCALE}/runs.csv",
        trace=f"results/{SCALE}/trace.csv",
    log:
        f"logs/{SCALE}/collect.log",
    params:
        scale=SCALE,
        config=scale_config,
    shell:
        "python -m stages.collect --scale {params.scale} > {log} 2>&1"


rule table:
    input:
        runs=f"results/{SCALE}/runs.csv",
        trace=f"results/{SCALE}/trace.csv",
    output:
        md=f"reports/{SCALE}/{{table}}.md",
        html=f"reports/{SCALE}/{{table}}.html",
        tex=f"reports/{SCALE}/{{table}}.tex",
    log:
        f"logs/{SCALE}/{{table}}.log",
    params:
        scale=SCALE,
        config=scale_config,
    shell:
        "python -m stages.tables --scale {params.scale} --table {wildcards.table} > {log} 2>&1"


rule figure:
    input:
        runs=f"results/{SCALE}/runs.csv",
        trace=f"results/{SCALE}/trace.csv",
        tables=TABLES,
    output:
        FIGURES,
    log:
        f"logs/{SCALE}/figures.log",
    params:
        scale=SCALE,
        config=scale_config,
    shell:
        "python -m stages.figures --scale {params.scale} > {log} 2>&1"
