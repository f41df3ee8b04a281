# The API, the worker, the scheduler, the embedded engine and the migrations: one image, `docker-compose.yml` says which.
FROM python:3.11.15-slim-bookworm

# The numbers are those of sglang.Dockerfile: the engine reads adapters that only their owner may read.
RUN groupadd --gid 10001 mulligan \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin mulligan \
    && install -d -o mulligan -g mulligan -m 0700 /data /data/adapters /cache

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.lock

COPY pyproject.toml README.md alembic.ini ./
COPY alembic alembic
COPY server server
COPY trainer trainer
COPY verifiers verifiers
COPY local_engine local_engine
COPY demo demo
COPY docker/alive.py docker/alive.py
COPY tools/hatch_build.py tools/admin_ui.py tools/
# The dashboard, without what it was built with; where it cannot be built the image does without.
RUN python tools/admin_ui.py --or-without && rm -rf server/admin/ui/node_modules /root/.npm
# Editable, for the migrations are found beside the code.
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --editable . && python -m compileall -q /app

ENV HOME=/cache \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
