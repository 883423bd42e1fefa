# The study in one image: `make image`, then `docker run --rm ifap:0.2.0` runs the scale `quick`. See docs/running.md.
#
# CUDA comes with the hashed wheels of requirements.lock; only the driver comes from the host (`--gpus all`, `--nv`).
# BASE_IMAGE may be any Debian with Python 3.11 to be had: debian:bookworm-slim, or one of your own with more in it.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE} AS system

RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends make python3 python3-venv tini \
 && rm -rf /var/lib/apt/lists/*

# A layer is made again when a file that it copies changes. So the entries of torch and CUDA get a file of their own:
# a new version of another package does not fetch them again.
FROM system AS locks
COPY requirements.lock container/layer.awk /locks/
RUN cd /locks \
 && awk -v only='^uv$' -f layer.awk requirements.lock > uv.lock \
 && awk -v only='^(torch|triton|nvidia-.*|cuda-.*)$' -f layer.awk requirements.lock > cuda.lock

FROM system
# Where a proxy signs for the package index: `--build-arg SSL_CERT_FILE=...`, a file that the base image holds.
ARG SSL_CERT_FILE
ENV PATH=/opt/ifap/bin:$PATH

# First torch and CUDA, by far the largest layer and the one that changes least; then everything else. No cache is kept,
# so that any builder can do it and packages are linked, not copied, into their place. Without a compiler nobody links
# static libraries.
COPY --from=locks /locks/uv.lock /locks/cuda.lock /opt/
RUN python3 -m venv /opt/ifap \
 && env ${SSL_CERT_FILE:+PIP_CERT=$SSL_CERT_FILE} \
    python -m pip install --quiet --disable-pip-version-check --no-cache-dir --require-hashes -r /opt/uv.lock \
 && uv pip install --quiet --no-cache --no-deps --require-hashes --compile-bytecode --python /opt/ifap -r /opt/cuda.lock \
 && find /opt/ifap -name '*.a' -delete
COPY requirements.lock /opt/
RUN uv pip sync --quiet --no-cache --require-hashes --compile-bytecode --python /opt/ifap /opt/requirements.lock

# Any user may run it (`--user`), so the study's own folder is open to all; nothing else is.
WORKDIR /study
COPY . .
RUN uv pip install --quiet --no-cache --no-deps --no-build-isolation --python /opt/ifap --editable . \
 && useradd --create-home --uid 1000 ifap \
 && mkdir -p data/raw logs state results reports .snakemake \
 && chmod -R a+rwX /study

# Which commit the records name: `make image` sets it, for git itself stays outside.
ARG COMMIT
ENV IFAP_COMMIT=$COMMIT \
    HOME=/var/tmp/home USER=ifap LOGNAME=ifap \
    PYTHONUNBUFFERED=1 DVC_NO_ANALYTICS=1 \
    HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER ifap

# `docker run IMAGE` runs quick; `docker run IMAGE snakemake --config scale=paper` or any other command replaces that.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["sh", "-c", "snakemake --quiet host reason rules --config scale=quick && python -m stages.summary --scale quick"]
