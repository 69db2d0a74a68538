# docker build -f deploy/load.Dockerfile -t warmstart-load .
# The load generator: Locust's master or a worker; docs/load.md.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}
ENV PATH=/opt/load/venv/bin:$PATH PYTHONPATH=/opt/load/app PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
COPY requirements/load.txt requirements/load-lock.txt /opt/load/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/load/venv \
    && pip install -c /opt/load/load-lock.txt -r /opt/load/load.txt pydantic \
    # A new volume mounted at /reports takes over the owner.
    && install -d -o 10001 -g 10001 /reports
COPY loadtests/load /opt/load/app/loadtests/load
USER 10001:10001
WORKDIR /reports
ENTRYPOINT ["python", "-m", "loadtests.load"]
CMD ["--help"]
