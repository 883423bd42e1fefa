rule collect:
    input:
        METRICS,
        RECEIPTS,
        HISTORIES,
        claims=str(paths.published_claims()),
        structure=str(paths.structure_csv()),
        text=str(paths.text_structure_csv()),
        dense=str(paths.dense_structure_csv()),
    output:
        RECORDED,
    log:
        f"logs/{SCALE}/collect.log",
    params:
        scale=SCALE,
        config=scale_config,
        cells=chosen_option(),
    shell:
        "{PYTHON} -m stages.collect --scale {params.scale} {params.cells} > {log} 2>&1"


# The published numbers against one another: needs neither data nor training. Its result is in git; what counts is
# what the claims say, not when their file was written.
rule audit:
    input:
        claims=ancient(str(paths.published_claims())),
    output:
        md=str(paths.audit_file("md")),
        csv=str(paths.audit_file("csv")),
    log:
        "logs/audit.log",
    params:
        claims=CLAIMS_CHECKSUM,
    shell:
        "{PYTHON} -m stages.audit > {log} 2>&1"


# The networks of Table II counted at full size: needs neither data nor training, and takes about ten minutes on one
# core. In git like the audit; rows that are there are kept.
rule structure:
    input:
        claims=ancient(str(paths.published_claims())),
    output:
        update(str(paths.structure_csv())),
    log:
        "logs/structure.log",
    params:
        claims=CLAIMS_CHECKSUM,
        version=claims.STRUCTURE_VERSION,
    shell:
        "{PYTHON} -m stages.structure > {log} 2>&1"


# The language models of Table V pruned at full size; the same. Needs 6 GB of memory.
rule text_structure:
    input:
        claims=ancient(str(paths.published_claims())),
    output:
        update(str(paths.text_structure_csv())),
    log:
        "logs/text_structure.log",
    params:
        claims=CLAIMS_CHECKSUM,
        version=claims.TEXT_STRUCTURE_VERSION,
    shell:
        "{PYTHON} -m stages.text_structure > {log} 2>&1"


# The detectors, segmenters and generators of Table III; the same. Needs 6 GB of memory.
rule dense_structure:
    input:
        claims=ancient(str(paths.published_claims())),
    output:
        update(str(paths.dense_structure_csv())),
    log:
        "logs/dense_structure.log",
    params:
        claims=CLAIMS_CHECKSUM,
        version=claims.DENSE_STRUCTURE_VERSION,
    shell:
        "{PYTHON} -m stages.dense_structure > {log} 2>&1"


rule table:
    input:
        RECORDED,
        published=str(paths.published_claims()),
    output:
        md=f"reports/{SCALE}/{{table}}.md",
        html=f"reports/{SCALE}/{{table}}.html",
        tex=f"reports/{SCALE}/{{table}}.tex",
        csv=f"reports/{SCALE}/{{table}}.csv",
    log:
        f"logs/{SCALE}/{{table}}.log",
    params:
        scale=SCALE,
        config=scale_config,
    shell:
        "{PYTHON} -m stages.tables --scale {params.scale} --table {wildcards.table} > {log} 2>&1"


rule figure:
    input:
        RECORDED,
        audit=str(paths.audit_file("csv")),
        tables=TABLES,
    output:
        FIGURES,
    log:
        f"logs/{SCALE}/figures.log",
    params:
        scale=SCALE,
        config=scale_config,
    shell:
        "{PYTHON} -m stages.figures --scale {params.scale} > {log} 2>&1"
