# The installation that answers: verify, identify, evaluate, galleries, serve; no torch.
# `.ci/containers` builds it, or runs its COPY and RUN steps where no docker is; docs/install.md tells
# how to run it. `docker build --target serve` makes a service of it, see docs/operations.md.
ARG PYTHON=3.13-slim

FROM python:${PYTHON} AS build
ARG VENV=/opt/twinlens
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python3 -m venv "$VENV"
RUN "$VENV/bin/python" -m pip install --quiet '.[serve]'

FROM python:${PYTHON} AS answer
COPY --from=build /opt/twinlens /opt/twinlens
# Everything that is written beside an answer goes to /tmp: the file system may be read-only.
ENV PATH=/opt/twinlens/bin:$PATH HOME=/tmp TWINLENS_CACHE=/tmp/twinlens MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
USER 65532:65532
ENTRYPOINT ["twinlens"]

FROM answer AS serve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data", "--keys", "/run/secrets/keys"]

FROM answer
HEALTHCHECK --interval=60s --timeout=20s CMD ["twinlens", "doctor"]
CMD ["--help"]
