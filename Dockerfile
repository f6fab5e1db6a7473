# Serves the embedded model:  docker run -p 127.0.0.1:8000:8000 IMAGE
# Another one:                docker run -p 127.0.0.1:8000:8000 -v ./models:/models -v store:/store IMAGE serve --no-auth --model /models/gpt2
# For tenants with keys:      docker run -v store:/store IMAGE admin tenant add acme, then … admin key create acme, then … IMAGE serve
# For Ray Serve:              docker build --build-arg EXTRAS=server,cloud,ray .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS builder
# pip options put before the torch pin: an index of CPU-only wheels, or `--find-links` with a folder of them.
ARG TORCH_ARGS=""
# Of pyproject.toml. `cloud` is 29 MB, and lets several servers share a bucket and PostgreSQL.
ARG EXTRAS="server,cloud"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Any compiler of the base's will do: nothing of it comes into the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# pip lives beside the environment that it fills, so that the image has none.
RUN python -m venv /pip && python -m venv --without-pip /opt/polyprefix
WORKDIR /source
COPY constraints.txt ./
RUN /pip/bin/pip --python /opt/polyprefix/bin/python install ${TORCH_ARGS} "$(grep '^torch==' constraints.txt)"
COPY . .
# Of torch, the headers, its own tests and its compilers are 195 MB that nothing here loads.
RUN /pip/bin/pip --python /opt/polyprefix/bin/python install --constraint constraints.txt ".[${EXTRAS}]" \
    && rm -rf /opt/polyprefix/lib/python3*/site-packages/torch/include /opt/polyprefix/lib/python3*/site-packages/torch/test \
    && find /opt/polyprefix/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete

FROM ${BASE}
ARG VERSION=""
LABEL org.opencontainers.image.title="Polyprefix" \
      org.opencontainers.image.description="One frozen GPT-2 serves many prefix-tuned tasks in one batch, over HTTP" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-SA-4.0 AND LicenseRef-WordNet"
COPY --from=builder /opt/polyprefix /opt/polyprefix
# A login shell, as an operator of Ray starts, sets its own PATH.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin polyprefix \
    && install --directory --owner=polyprefix --group=polyprefix /backups /models /store \
    && echo "PATH=/opt/polyprefix/bin:${PATH}" > /etc/profile.d/polyprefix.sh
ENV PATH=/opt/polyprefix/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models \
    POLYPREFIX_HOST=0.0.0.0 \
    POLYPREFIX_PORT=8000 \
    POLYPREFIX_STORE=/store
USER 10001:10001
WORKDIR /store
VOLUME ["/models", "/store"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import http.client as h, os, sys; c = h.HTTPConnection('127.0.0.1', int(os.environ['POLYPREFIX_PORT']), timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["polyprefix"]
CMD ["serve", "--host", "0.0.0.0", "--no-auth"]
