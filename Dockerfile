# The installation that answers: verify, identify, evaluate, galleries; no torch. `.ci/containers`
# builds it, or runs its COPY and RUN steps where no docker is; docs/install.md tells how to run it.
ARG PYTHON=3.13-slim

FROM python:${PYTHON} AS build
ARG VENV=/opt/twinlens
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python3 -m venv "$VENV"
RUN "$VENV/bin/python" -m pip install --quiet .

FROM python:${PYTHON}
COPY --from=build /opt/twinlens /opt/twinlens
# Everything that is written beside an answer goes to /tmp: the file system may be read-only.
ENV PATH=/opt/twinlens/bin:$PATH HOME=/tmp TWINLENS_CACHE=/tmp/twinlens MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
USER 65532:65532
HEALTHCHECK --interval=60s --timeout=20s CMD ["twinlens", "doctor"]
ENTRYPOINT ["twinlens"]
CMD ["--help"]
