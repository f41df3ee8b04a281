# SGLang as its makers ship it, but not as root, and with folders that volumes take their owner from.
FROM lmsysorg/sglang:v0.5.23

USER root
# The numbers are those of mulligan.Dockerfile: the engine reads adapters that only their owner may read.
RUN groupadd --gid 10001 mulligan \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin mulligan \
    && install -d -o mulligan -g mulligan -m 0700 /data /data/adapters /cache

# Whatever compiles kernels keeps them under HOME.
ENV HOME=/cache \
    PYTHONUNBUFFERED=1
WORKDIR /cache
USER 10001:10001
