# From data to tables: fetch -> baseline -> prune -> finetune -> evaluate -> collect -> tables and figures.
# Science is in params.yaml, threads and memory are in profiles/; run `snakemake -n` to see what would run.
from snakemake.utils import min_version

min_version("9.0")


configfile: "params.yaml"


# Used only with `--software-deployment-method apptainer`, see profiles/container; `make image` makes it.
container: "docker-daemon:ifap:0.2.0"


include: "rules/common.smk"
include: "rules/cells.smk"
include: "rules/report.smk"


localrules:
    all,
    tables,
    figures,


rule all:
    default_target: True
    input:
        DATASETS,
        CHECKPOINTS,
        METRICS,
        TABLES,
        FIGURES,


rule tables:
    input:
        TABLES,


rule figures:
    input:
        FIGURES,
