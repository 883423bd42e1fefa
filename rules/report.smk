rule collect:
    input:
        METRICS,
        RECEIPTS,
        HISTORIES,
        claims=str(paths.published_claims()),
        full_size=str(paths.full_size_csv()),
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


# The networks of the paper counted at full size: needs neither data nor training, but 6 GB of memory, and takes about
# half an hour on one core. In git like the audit; rows that are there are kept.
rule full_size:
    input:
        claims=ancient(str(paths.published_claims())),
    output:
        update(str(paths.full_size_csv())),
    log:
        "logs/full_size.log",
    params:
        claims=CLAIMS_CHECKSUM,
        versions=claims.FULL_SIZE_VERSIONS,
    shell:
        "{PYTHON} -m stages.full_size > {log} 2>&1"


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
